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

from tests.conftest import StartProxy
from tests.integration.sdks import (
    CASES,
    DIALECTS,
    KEY,
    TIMEOUT,
    WAYS,
    Sdks,
    answer_of,
    check_answer,
    check_requests,
    configuration,
    events,
    expected,
    last_recorded,
    snapshot,
)
from tests.support import fixtures
from tests.support.fixtures import Case
from tests.support.in_process import InProcessProxy
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, Gate, Pause, ScriptedUpstream

# Fixtures name models that their vendor has since deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The model:DeprecationWarning"),
    pytest.mark.usefixtures("no_proxy_of_our_own"),
]


@pytest.fixture
def process(start_proxy: StartProxy, upstream: ScriptedUpstream) -> InProcessProxy:
    return start_proxy(config=configuration(upstream.url))


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
