"""The vendors' own Python SDKs as clients, and what they and the rows must say of a fixture."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.support import fixtures
from tests.support.client import trust
from tests.support.database import Row, said_of_usage
from tests.support.fixtures import Case
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

WAYS = ("proxy", "proxy over HTTP/2", "gateway")

DIALECTS = ("messages", "chat_completions", "responses")

NAMES = ("simple", "thinking", "parallel_tools", "cached_tokens")

TIMEOUT = 10.0

KEY = "sk-test-0123456789abcdef"

TABLES = (
    "aibridge_interceptions",
    "aibridge_token_usages",
    "aibridge_user_prompts",
    "aibridge_tool_usages",
    "aibridge_model_thoughts",
)


CASES = [
    fixtures.case(f"{dialect}/{name}/{mode}")
    for dialect in DIALECTS
    for name in NAMES
    for mode in ("streaming", "blocking")
]


def configuration(url: str) -> str:
    return (
        "providers:\n"
        f"  - {{name: anthropic, type: anthropic, base_url: '{url}'}}\n"
        f"  - {{name: openai, type: openai, base_url: '{url}/v1'}}\n"
    )


class Sdks:
    """Both vendors' clients, blocking and asynchronous, set up for one way in."""

    def __init__(self, process: RunningProxy, way: str) -> None:
        options: dict[str, Any] = {"timeout": TIMEOUT}
        hosts = f"{process.proxy_url}/anthropic", f"{process.proxy_url}/openai"
        if way != "gateway":
            options |= {"proxy": process.proxy_url, "verify": trust(process), "http2": way.endswith("HTTP/2")}
            hosts = "https://api.anthropic.com", "https://api.openai.com"
        first: dict[str, Any] = {"api_key": KEY, "max_retries": 0, "base_url": hosts[0]}
        second: dict[str, Any] = {"api_key": KEY, "max_retries": 0, "base_url": hosts[1] + "/v1"}
        client, async_client = anthropic.DefaultHttpxClient, anthropic.DefaultAsyncHttpxClient
        self.anthropic = anthropic.Anthropic(http_client=client(**options), **first)
        self.openai = openai.OpenAI(http_client=client(**options), **second)
        self.async_anthropic = anthropic.AsyncAnthropic(http_client=async_client(**options), **first)
        self.async_openai = openai.AsyncOpenAI(http_client=async_client(**options), **second)

    def close(self) -> None:
        self.anthropic.close()
        self.openai.close()

    async def aclose(self) -> None:
        await self.async_anthropic.close()
        await self.async_openai.close()

    def ask(self, case: Case) -> dict[str, Any]:
        """The answer as the SDK has parsed it."""
        body = json.loads(case.request)
        match case.dialect, body.pop("stream", False):
            case "messages", False:
                return _dict(self.anthropic.messages.create(**body))
            case "messages", _:
                with self.anthropic.messages.stream(**body) as stream:
                    return stream.get_final_message().to_dict()
            case "chat_completions", False:
                return _dict(self.openai.chat.completions.create(**body))
            case "chat_completions", _:
                state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
                for chunk in self.openai.chat.completions.create(**body, stream=True):
                    state.handle_chunk(chunk)
                return state.get_final_completion().to_dict()
            case _, False:
                return _dict(self.openai.responses.create(**body))
            case _:
                [*_, last] = self.openai.responses.create(**body, stream=True)
                return _completed(last)

    async def ask_async(self, case: Case) -> dict[str, Any]:
        body = json.loads(case.request)
        match case.dialect, body.pop("stream", False):
            case "messages", False:
                return _dict(await self.async_anthropic.messages.create(**body))
            case "messages", _:
                async with self.async_anthropic.messages.stream(**body) as stream:
                    return (await stream.get_final_message()).to_dict()
            case "chat_completions", False:
                return _dict(await self.async_openai.chat.completions.create(**body))
            case "chat_completions", _:
                state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
                async for chunk in await self.async_openai.chat.completions.create(**body, stream=True):
                    state.handle_chunk(chunk)
                return state.get_final_completion().to_dict()
            case _, False:
                return _dict(await self.async_openai.responses.create(**body))
            case _:
                seen = [event async for event in await self.async_openai.responses.create(**body, stream=True)]
                return _completed(seen[-1])


def _dict(model: Any) -> dict[str, Any]:
    members: dict[str, Any] = model.to_dict()
    return members


def _completed(event: Any) -> dict[str, Any]:
    assert event.type == "response.completed"
    return _dict(event.response)


def content_of(dialect: str, answer: dict[str, Any]) -> dict[str, Any]:
    """What a program would take from an answer: its text, its calls and its costs."""
    usage = answer["usage"]
    if dialect == "messages":
        blocks = answer["content"]
        text = [block["text"] for block in blocks if block["type"] == "text"]
        calls = [(block["id"], block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
        thoughts = [block["thinking"] for block in blocks if block["type"] == "thinking"]
        tokens = (usage["input_tokens"], usage["output_tokens"], usage["cache_read_input_tokens"])
    elif dialect == "chat_completions":
        messages = [choice["message"] for choice in answer["choices"]]
        text = [message["content"] for message in messages if message.get("content")]
        called = [call for message in messages for call in message.get("tool_calls") or ()]
        calls = [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in called]
        thoughts = []
        tokens = (usage["prompt_tokens"], usage["completion_tokens"], usage["prompt_tokens_details"]["cached_tokens"])
    else:
        items = answer["output"]
        text = [part["text"] for item in items if item["type"] == "message" for part in item["content"]]
        called = [item for item in items if item["type"] == "function_call"]
        calls = [(call["call_id"], call["name"], json.loads(call["arguments"])) for call in called]
        thoughts = [part["text"] for item in items if item["type"] == "reasoning" for part in item["summary"]]
        tokens = (usage["input_tokens"], usage["output_tokens"], usage["input_tokens_details"]["cached_tokens"])
    return {"id": answer["id"], "text": text, "calls": calls, "thoughts": thoughts, "tokens": tokens}


def snapshot(process: RunningProxy) -> dict[str, list[Row]]:
    """All rows, as they are at this moment."""
    return {table: process.rows(table) for table in TABLES}  # type: ignore[arg-type]


def last_recorded(process: RunningProxy) -> dict[str, Any]:
    """The newest interception and its rows in a fixture's terms, as they are at this moment."""
    tables = snapshot(process)
    interception = tables.pop("aibridge_interceptions")[-1]
    tokens, prompts, tools, thoughts = (
        [row for row in rows if row["interception_id"] == interception["id"]] for rows in tables.values()
    )
    counts = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens", "completeness")
    assert interception["ended_at"] is not None
    return {
        "status": interception["status"],
        "http_status": interception["http_status"],
        "model": interception["model"],
        "streaming": interception["streaming"],
        "response_id": {row["provider_response_id"] for row in (*tokens, *prompts, *tools, *thoughts)},
        "prompt": [row["prompt"] for row in prompts],
        "tokens": [{name: row[name] for name in counts} | {"extra": said_of_usage(row)} for row in tokens],
        "tools": [(row["tool"], row["provider_tool_call_id"], row["input"]) for row in tools],
        "thoughts": [(row["content"], row["metadata"]["source"]) for row in thoughts],
    }


def expected(case: Case) -> dict[str, Any]:
    given = case.expected
    return {
        "status": given["status"],
        "http_status": given["http_status"],
        "model": given["model"],
        "streaming": int(case.streaming),
        "response_id": {given["response_id"]},
        "prompt": [given["prompt"]],
        "tokens": given["tokens"],
        "tools": [(call["tool"], call["provider_tool_call_id"], call["input"]) for call in given.get("tools", ())],
        "thoughts": [(thought["content"], thought["source"]) for thought in given.get("thoughts", ())],
    }


def answer_of(case: Case, *, in_pieces: bool = False) -> Answer:
    """The case's answer in one piece, or each event (each half of a body) in a chunk of its own."""
    headers = [("content-type", case.content_type)]
    if not in_pieces:
        return Answer(case.status, headers, case.body, framing="chunked" if case.streaming else "length")
    half = len(case.body) // 2
    return Answer(case.status, headers, events(case) if case.streaming else (case.body[:half], case.body[half:]))


def events(case: Case) -> list[bytes]:
    return [event + b"\n\n" for event in case.body.split(b"\n\n") if event]


def check_answer(case: Case, answer: dict[str, Any]) -> None:
    """A stream adds up to the blocking answer of the same fixture, which an SDK gives back member by member."""
    blocking = json.loads(fixtures.case(f"{case.dialect}/{case.name}/blocking").body)
    assert content_of(case.dialect, answer) == content_of(case.dialect, blocking), case
    if not case.streaming:
        assert answer == blocking, case


def check_requests(upstream: ScriptedUpstream, way: str) -> None:
    paths = {"messages": "/v1/messages", "chat_completions": "/v1/chat/completions", "responses": "/v1/responses"}
    assert [request.path for request in upstream.requests] == [paths[case.dialect] for case in CASES]
    for request in upstream.requests:
        if way != "gateway":
            assert request.http_version == ("2" if way == "proxy over HTTP/2" else "1.1")
        assert KEY in (request.header("x-api-key"), (request.header("authorization") or "").removeprefix("Bearer "))
