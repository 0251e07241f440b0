import OpenAI from "openai";

const [which, prompt] = process.argv.slice(2);
const client = new OpenAI({ maxRetries: 0, timeout: 20_000 });
const tool = {
  type: "function",
  name: "get_weather",
  description: "The weather of a city",
  parameters: { type: "object", properties: { city: { type: "string" } } },
  strict: false,
};
const input = [{ role: "user", content: prompt }];
const request = { model: "gpt-5.2", tools: [tool], input };
if (which === "tool") {
  const called = await client.responses.create(request);
  input.push(...called.output);
  for (const item of called.output.filter((each) => each.type === "function_call"))
    input.push({ type: "function_call_output", call_id: item.call_id, output: "output-of-the-clients-tool" });
  console.log((await client.responses.create(request)).output_text);
} else {
  for await (const event of await client.responses.create({ ...request, stream: true })) {
    if (event.type !== "response.output_text.delta") continue;
    process.stdout.write(event.delta);
    if (which === "cancelled") break;
  }
}
