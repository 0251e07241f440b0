import OpenAI from "openai";

const [which, prompt] = process.argv.slice(2);
const client = new OpenAI({ maxRetries: 0, timeout: 20_000 });
const definition = {
  name: "get_weather",
  description: "The weather of a city",
  parameters: { type: "object", properties: { city: { type: "string" } } },
};
const messages = [{ role: "user", content: prompt }];
const request = { model: "gpt-4.1", tools: [{ type: "function", function: definition }], messages };
if (which === "tool") {
  const called = (await client.chat.completions.create(request)).choices[0].message;
  messages.push(called);
  for (const call of called.tool_calls)
    messages.push({ role: "tool", tool_call_id: call.id, content: "output-of-the-clients-tool" });
  console.log((await client.chat.completions.create(request)).choices[0].message.content);
} else {
  for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
    const text = chunk.choices[0]?.delta?.content;
    if (!text) continue;
    process.stdout.write(text);
    if (which === "cancelled") break;
  }
}
