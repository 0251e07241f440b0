import sys

from langchain.chat_models import init_chat_model
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool

model, case, prompt = sys.argv[1:]


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return "output-of-the-clients-tool"


chat = init_chat_model(model, max_retries=0, timeout=20).bind_tools([get_weather])
messages = [HumanMessage(prompt)]
if case == "tool":
    called = chat.invoke(messages)
    messages.append(called)
    messages += [ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]) for call in called.tool_calls]
    print(chat.invoke(messages).text)
else:
    for chunk in chat.stream(messages):
        print(chunk.text, end="", flush=True)
        if chunk.text and case == "cancelled":
            break
