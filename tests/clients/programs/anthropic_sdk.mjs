import Anthropic from "@anthropic-ai/sdk";

const [which, prompt] = process.argv.slice(2);
const client = new Anthropic({ maxRetries: 0, timeout: 20_000 });
const tool = {
  name: "get_weather",
  description: "The weather of a city",
  input_schema: { type: "object", properties: { city: { type: "string" } } },
};
const messages = [{ role: "user", content: prompt }];
const request = { model: "claude-sonnet-4-5", max_tokens: 1000, tools: [tool], messages };
if (which === "tool") {
  const called = await client.messages.create(request);
  const results = called.content
    .filter((block) => block.type === "tool_use")
    .map((block) => ({ type: "tool_result", tool_use_id: block.id, content: "output-of-the-clients-tool" }));
  messages.push({ role: "assistant", content: called.content }, { role: "user", content: results });
  console.log((await client.messages.create(request)).content[0].text);
} else {
  for await (const event of await client.messages.create({ ...request, stream: true })) {
    if (event.type !== "content_block_delta") continue;
    process.stdout.write(event.delta.text);
    if (which === "cancelled") break;
  }
}
