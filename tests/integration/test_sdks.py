"""The vendors' own Python SDKs see what the fixtures say, and the rows stand when they have seen an answer's end.

Rows are read without waiting: `recording.durable` promises that they are committed before the client sees the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.conftest import StartProxy
from tests.support import fixtures
from tests.support.client import trust
from tests.support.database import Row
from tests.support.fixtures import Case
from tests.support.in_process import InProcessProxy
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, Gate, Pause, ScriptedUpstream

# Fixtures name models that their vendor has since deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")

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


@pytest.fixture(autouse=True)
def no_proxy_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDKs' own HTTP clients look at the environment first."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def process(start_proxy: StartProxy, upstream: ScriptedUpstream) -> InProcessProxy:
    return start_proxy(
        config=(
            "providers:\n"
            f"  - {{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}\n"
            f"  - {{name: openai, type: openai, base_url: '{upstream.url}/v1'}}\n"
        )
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
    told: dict[str, Any] = model.to_dict()
    return told


def _completed(event: Any) -> dict[str, Any]:
    assert event.type == "response.completed"
    return _dict(event.response)


def told(dialect: str, answer: dict[str, Any]) -> dict[str, Any]:
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
        "tokens": [{name: row[name] for name in counts} | {"extra": row["metadata"]} for row in tokens],
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
    assert told(case.dialect, answer) == told(case.dialect, blocking), case
    if not case.streaming:
        assert answer == blocking, case


@pytest.mark.parametrize("way", WAYS)
def test_what_an_sdk_reads_is_what_was_sent_and_recorded(
    process: RunningProxy, upstream: ScriptedUpstream, way: str
) -> None:
    sdks = Sdks(process, way)
    for case in CASES:
        upstream.answer(answer_of(case))
        answer = sdks.ask(case)
        recorded = last_recorded(process)
        assert recorded == expected(case), case
        check_answer(case, answer)
    sdks.close()
    check_requests(upstream, way)


@pytest.mark.parametrize("way", WAYS)
async def test_what_an_asynchronous_sdk_reads_is_what_was_sent_and_recorded(
    process: RunningProxy, upstream: ScriptedUpstream, way: str
) -> None:
    sdks = Sdks(process, way)
    for case in CASES:
        upstream.answer(answer_of(case, in_pieces=True))
        answer = await sdks.ask_async(case)
        recorded = last_recorded(process)
        assert recorded == expected(case), case
        check_answer(case, answer)
    await sdks.aclose()
    check_requests(upstream, way)


def check_requests(upstream: ScriptedUpstream, way: str) -> None:
    paths = {"messages": "/v1/messages", "chat_completions": "/v1/chat/completions", "responses": "/v1/responses"}
    assert [request.path for request in upstream.requests] == [paths[case.dialect] for case in CASES]
    for request in upstream.requests:
        if way != "gateway":
            assert request.http_version == ("2" if way == "proxy over HTTP/2" else "1.1")
        assert KEY in (request.header("x-api-key"), (request.header("authorization") or "").removeprefix("Bearer "))


def test_an_sdk_finds_us_through_the_environment(
    process: RunningProxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", process.proxy_url)
    monkeypatch.setenv("SSL_CERT_FILE", str(process.ca_file))
    case = fixtures.case("messages/simple/streaming")
    upstream.answer(answer_of(case))
    body = json.loads(case.request)
    del body["stream"]
    client = anthropic.Anthropic(api_key=KEY, max_retries=0, timeout=TIMEOUT)
    with client, client.messages.stream(**body) as stream:
        answer = stream.get_final_message().to_dict()
        recorded = last_recorded(process)
    check_answer(case, answer)
    assert recorded == expected(case)


# --- clients that leave as soon as they have what they want


def terminal_events(sdks: Sdks, case: Case) -> Iterator[Any]:
    """Yield once, when the SDK has read the terminal event; then hang up."""
    body = json.loads(case.request)
    if case.dialect == "messages":
        with sdks.anthropic.messages.create(**body) as stream:
            yield next(event for event in stream if event.type == "message_stop")
    elif case.dialect == "responses":
        with sdks.openai.responses.create(**body) as stream:
            yield next(event for event in stream if event.type == "response.completed")
    else:
        with sdks.openai.chat.completions.create(**body) as stream:
            yield list(stream)[-1]  # the SDK ends its iteration at [DONE]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_client_that_hangs_up_after_the_terminal_event_is_completed(
    process: InProcessProxy, upstream: ScriptedUpstream, dialect: str, way: str
) -> None:
    case = fixtures.case(f"{dialect}/parallel_tools/streaming")
    gate = Gate()
    upstream.answer(Answer.event_stream(*events(case), Pause(gate)))
    sdks = Sdks(process, way)
    for _ in terminal_events(sdks, case):
        recorded = last_recorded(process)
        assert recorded == expected(case)
    rows = snapshot(process)
    sdks.close()
    upstream.wait_for_disconnects()
    process.close()
    assert snapshot(process) == rows
    gate.open()


# --- usage that only we asked for


def chunks_without_usage(case: Case) -> list[Any]:
    """What the same server would have sent to a client that asks for no usage."""
    data = [line[6:] for line in case.body.decode().splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in data]
    return [
        {name: value for name, value in chunk.items() if name != "usage"}
        for chunk in chunks
        if chunk["choices"] or not chunk.get("usage")
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["simple", "parallel_tools", "azure_deployment"])
def test_usage_that_the_client_did_not_ask_for_is_recorded_but_not_shown(
    process: RunningProxy, upstream: ScriptedUpstream, way: str, name: str
) -> None:
    case = fixtures.case(f"chat_completions/{name}/streaming")
    body = {"model": "gpt-4.1", **json.loads(case.request)}
    body.pop("stream_options", None)
    upstream.answer(Answer.event_stream(*events(case)))
    sdks = Sdks(process, way)
    chunks = [chunk.to_dict() for chunk in sdks.openai.chat.completions.create(**body)]
    recorded = last_recorded(process)
    sdks.close()
    assert recorded["tokens"] == expected(case)["tokens"]
    assert chunks == chunks_without_usage(case)
    assert upstream.requests[0].json() == body | {"stream_options": {"include_usage": True}}


def test_usage_that_the_client_asked_for_is_shown(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    case = fixtures.case("chat_completions/simple/streaming")
    upstream.answer(answer_of(case))
    sdks = Sdks(process, "proxy")
    chunks = list(sdks.openai.chat.completions.create(**json.loads(case.request)))
    sdks.close()
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens
    assert upstream.requests[0].json() == json.loads(case.request)


# --- errors


def test_an_sdk_raises_its_own_errors_for_the_providers(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    sdks = Sdks(process, "proxy")
    upstream.answer(answer_of(fixtures.case("messages/error_before_429/blocking")))
    with pytest.raises(anthropic.RateLimitError):
        sdks.anthropic.messages.create(**body, max_tokens=9)
    upstream.answer(answer_of(fixtures.case("messages/error_in_stream/streaming")))
    with (
        pytest.raises(anthropic.APIStatusError, match="overloaded_error"),
        sdks.anthropic.messages.stream(**body, max_tokens=9) as stream,
    ):
        stream.get_final_message()
    upstream.answer(answer_of(fixtures.case("chat_completions/error_before_400/blocking")))
    with pytest.raises(openai.BadRequestError):
        sdks.openai.chat.completions.create(**body)
    sdks.close()
    rows = process.rows("aibridge_interceptions")
    assert [(row["status"], row["http_status"], row["error_type"]) for row in rows] == [
        ("failed", 429, "rate_limit_error"),
        ("failed", 200, "overloaded_error"),
        ("failed", 400, "invalid_request_error"),
    ]
