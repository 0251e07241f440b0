import sys

import openai

case, prompt = sys.argv[1:]
client = openai.OpenAI(max_retries=0, timeout=20)
function = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
messages = [{"role": "user", "content": prompt}]
request = {"model": "gpt-4.1", "tools": [{"type": "function", "function": function}]}
if case == "tool":
    called = client.chat.completions.create(messages=messages, **request).choices[0].message
    messages.append(called.to_dict())
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": "output-of-the-clients-tool"} for call in called.tool_calls
    ]
    print(client.chat.completions.create(messages=messages, **request).choices[0].message.content)
else:
    with client.chat.completions.create(messages=messages, stream=True, **request) as stream:
        for chunk in stream:
            text = chunk.choices[0].delta.content if chunk.choices else None
            print(text or "", end="", flush=True)
            if text and case == "cancelled":
                break
