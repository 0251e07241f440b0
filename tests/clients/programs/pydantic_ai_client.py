import asyncio
import sys

from pydantic_ai import Agent

model, case, prompt = sys.argv[1:]
agent = Agent(model)


@agent.tool_plain
def get_weather(city: str) -> str:
    """The weather of a city."""
    return "output-of-the-clients-tool"


async def stream() -> None:
    async with agent.run_stream(prompt) as result:
        async for text in result.stream_text(delta=True, debounce_by=None):
            print(text, end="", flush=True)
            if case == "cancelled":
                return


if case == "tool":
    print(agent.run_sync(prompt).output)
else:
    asyncio.run(stream())
