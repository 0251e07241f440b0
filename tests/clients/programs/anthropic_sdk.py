import sys

import anthropic

case, prompt = sys.argv[1:]
client = anthropic.Anthropic(max_retries=0, timeout=20)
tool = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
messages = [{"role": "user", "content": prompt}]
request = {"model": "claude-sonnet-4-5", "max_tokens": 1000, "tools": [tool]}
if case == "tool":
    called = client.messages.create(messages=messages, **request)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "output-of-the-clients-tool"}
        for block in called.content
        if block.type == "tool_use"
    ]
    messages += [{"role": "assistant", "content": called.to_dict()["content"]}, {"role": "user", "content": results}]
    print(client.messages.create(messages=messages, **request).content[0].text)
else:
    with client.messages.stream(messages=messages, **request) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
            if case == "cancelled":
                break
