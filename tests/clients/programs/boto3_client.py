import sys

import boto3

case, prompt = sys.argv[1:]
client = boto3.client("bedrock-runtime")
schema = {"json": {"type": "object", "properties": {"city": {"type": "string"}}}}
tool = {"toolSpec": {"name": "get_weather", "description": "The weather of a city", "inputSchema": schema}}
messages = [{"role": "user", "content": [{"text": prompt}]}]
request = {"modelId": "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "toolConfig": {"tools": [tool]}}
if case == "tool":
    called = client.converse(messages=messages, **request)["output"]["message"]
    results = [
        {
            "toolResult": {
                "toolUseId": block["toolUse"]["toolUseId"],
                "content": [{"text": "output-of-the-clients-tool"}],
            }
        }
        for block in called["content"]
        if "toolUse" in block
    ]
    messages += [called, {"role": "user", "content": results}]
    print(client.converse(messages=messages, **request)["output"]["message"]["content"][0]["text"])
else:
    stream = client.converse_stream(messages=messages, **request)["stream"]
    for event in stream:
        text = event.get("contentBlockDelta", {}).get("delta", {}).get("text")
        print(text or "", end="", flush=True)
        if text and case == "cancelled":
            stream.close()
            break
