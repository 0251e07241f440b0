import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";

const [vendor, which, prompt] = process.argv.slice(2);
const model = vendor === "anthropic" ? createAnthropic()("claude-sonnet-4-5") : createOpenAI()("gpt-5.2");
const tools = {
  get_weather: tool({
    description: "The weather of a city",
    inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } } }),
    execute: async () => "output-of-the-clients-tool",
  }),
};
const request = { model, tools, prompt, maxRetries: 0, stopWhen: stepCountIs(3) };
if (which === "tool") {
  console.log((await generateText(request)).text);
} else {
  const leaving = new AbortController();
  const { textStream } = streamText({ ...request, abortSignal: leaving.signal });
  for await (const text of textStream) {
    process.stdout.write(text);
    if (text && which === "cancelled") {
      leaving.abort();
      break;
    }
  }
}
