import sys

import openai

case, prompt = sys.argv[1:]
client = openai.OpenAI(max_retries=0, timeout=20)
tool = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
items = [{"role": "user", "content": prompt}]
request = {"model": "gpt-5.2", "tools": [tool]}
if case == "tool":
    called = client.responses.create(input=items, **request)
    items += [item.to_dict() for item in called.output]
    items += [
        {"type": "function_call_output", "call_id": item.call_id, "output": "output-of-the-clients-tool"}
        for item in called.output
        if item.type == "function_call"
    ]
    print(client.responses.create(input=items, **request).output_text)
else:
    with client.responses.create(input=items, stream=True, **request) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
                if case == "cancelled":
                    break
