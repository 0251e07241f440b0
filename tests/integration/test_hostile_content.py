"""Content that would cost a reader its memory, time or patience: the traffic passes byte for byte all the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, Seen, wait_for_ended
from tests.support.codings import encode
from tests.support.fixtures import case
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

MEBIBYTE = 1024 * 1024
SMALL = 256 * MEBIBYTE
RSS_GROWTH = 150 * MEBIBYTE
MAX_EVENT = 64 * 1024
STREAM = ("content-type", "text/event-stream")
JSON = ("content-type", "application/json")
PATH = "/v1/messages"
SIMPLE = case("messages/simple/streaming")
EVENTS = [event + b"\n\n" for event in SIMPLE.body.split(b"\n\n") if event]
BLOCKING = case("messages/simple/blocking").body
REQUEST = SIMPLE.request
DEEP = b"[" * 100_000 + b"]" * 100_000
HUGE = b"9" * 5_000


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(
        config=(
            f"limits: {{sse_event: {MAX_EVENT}}}\n"
            "providers:\n"
            f"  - {{name: anthropic, type: anthropic, base_url: 'https://localhost:{upstream.port}'}}\n"
            f"  - {{name: openai, type: openai, base_url: 'https://localhost:{upstream.port}/v1'}}\n"
        )
    )


def answered(proxy: RunningProxy, upstream: ScriptedUpstream, answer: Answer, request: bytes = REQUEST) -> Seen:
    """Have one request answered, whose bytes and whose answer's bytes must be the same on both sides."""
    upstream.answer(answer)
    with Client(proxy, ANTHROPIC) as client:
        seen = client.post(PATH, request)
    assert seen.status == answer.status
    assert seen.body == b"".join(step for step in answer.steps if isinstance(step, bytes))
    assert upstream.requests[-1].body == request
    return seen


def last_row(proxy: RunningProxy, n: int = 1) -> dict[str, Any]:
    rows = wait_for_ended(proxy, n)
    assert len(rows) == n
    return rows[-1]


def outcome(row: dict[str, Any]) -> tuple[str, str | None]:
    return row["status"], row["error_type"]


# --- bombs


# --- streams


def test_an_event_above_the_limit_passes_unread(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    large = b'event: content_block_delta\ndata: {"pad":"' + b"x" * MEBIBYTE + b'"}\n\n'
    answered(proxy, upstream, Answer.event_stream(*EVENTS[:5], large, *EVENTS[5:]))
    assert outcome(last_row(proxy)) == ("completed", None)
    [usage] = proxy.rows("aibridge_token_usages")
    assert (usage["output_tokens"], usage["completeness"]) == (19, "partial")


def test_an_end_above_the_limit_is_nobodys_failure(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    stream = case("responses/simple/streaming")
    events = [event + b"\n\n" for event in stream.body.split(b"\n\n") if event]
    events[-1] = events[-1].replace(b'{"type"', b'{"pad":"' + b"x" * MAX_EVENT + b'","type"', 1)
    upstream.answer(Answer.event_stream(*events))
    with Client(proxy, OPENAI) as client:
        assert client.post("/v1/responses", stream.request).body == b"".join(events)
    assert outcome(last_row(proxy)) == ("completed", None)


def test_a_stream_of_line_ends_or_of_one_endless_line_passes(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    for body in (b"\r\n" * MEBIBYTE, b"data: " + b"x" * 4 * MEBIBYTE, b"\x00" * MEBIBYTE, b"data:\n" * MEBIBYTE):
        answered(proxy, upstream, Answer.event_stream(body))
    assert [row["http_status"] for row in wait_for_ended(proxy, 4)] == [200] * 4


# --- JSON


def nested(*members: bytes) -> bytes:
    return b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"Hi"}],' + b",".join(members) + b"}"


@pytest.mark.parametrize("streaming", [False, True])
def test_json_that_nobody_can_hold_passes(proxy: RunningProxy, upstream: ScriptedUpstream, streaming: bool) -> None:
    requests = (nested(b'"deep":' + DEEP), nested(b'"n":' + HUGE), nested(b'"n":-1e999,"m":1' + b"0" * 400 + b".5"))
    answers = (
        b'{"id":"msg_1","content":' + DEEP + b',"usage":{"input_tokens":1}}',
        b'{"id":"msg_1","content":[],"usage":{"input_tokens":' + HUGE + b',"output_tokens":-1}}',
        b'{"id":"msg_1","content":{},"usage":{"input_tokens":1e400,"output_tokens":"7","x":' + HUGE + b"}}",
    )
    for count, (request, answer) in enumerate(zip(requests, answers, strict=True), 1):
        if streaming:
            start = b'event: message_start\ndata: {"type":"message_start","message":' + answer + b"}\n\n"
            sent = Answer.event_stream(start, *EVENTS[1:])
        else:
            sent = Answer(headers=[JSON], body=answer, framing="length")
        answered(proxy, upstream, sent, request)
        row = last_row(proxy, count)
        assert outcome(row) == ("completed", None)
        assert row["model"] in ("m", "")
    assert "Traceback" not in proxy.log


def test_lone_surrogates_are_recorded_as_replacements(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    request = b'{"model":"m","messages":[{"role":"user","content":"a\\ud83d b\\ude00 \\ud83d\\ude00"}]}'
    answer = BLOCKING.replace(b'"text":"A', b'"text":"\\udfff')
    answered(proxy, upstream, Answer(headers=[JSON], body=answer, framing="length"), request)
    assert outcome(last_row(proxy)) == ("completed", None)
    [prompt] = proxy.rows("aibridge_user_prompts")
    assert prompt["prompt"] in ("a? b? \U0001f600", "a\ufffd b\ufffd \U0001f600")
    [usage] = proxy.rows("aibridge_token_usages")
    assert usage["output_tokens"] == 19


# --- labels that lie


def test_a_wrong_label_changes_no_byte(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    plain = b"".join(EVENTS)
    labelled: Iterable[tuple[str, bytes]] = (
        ("gzip", plain),
        ("br", encode(plain, "gzip")),
        ("zstd", plain[:3]),
        ("x-unknown", plain),
        ("gzip, gzip, gzip, gzip, gzip, gzip", plain),
        ("identity", encode(plain, "zstd")),
        ("gzip", encode(plain, "gzip")[:-4]),
    )
    for count, (label, body) in enumerate(labelled, 1):
        for kind in (STREAM, JSON):
            answer = Answer(headers=[kind, ("content-encoding", label)], body=body)
            assert answered(proxy, upstream, answer).headers["content-encoding"] == label
        assert len(wait_for_ended(proxy, 2 * count)) == 2 * count
    first = proxy.rows("aibridge_interceptions")[0]
    assert outcome(first) == ("completed", None), "what cannot be read cannot be called a failure"


def test_an_error_page_passes_and_is_recorded_as_a_failure(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    page = b"<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"
    html = ("content-type", "text/html; charset=UTF-8")
    for status in (502, 404, 200):
        seen = answered(proxy, upstream, Answer(status, [html], page))
        assert seen.content_type == html[1]
    rows = wait_for_ended(proxy, 3)
    assert [(row["status"], row["error_type"], row["http_status"]) for row in rows] == [
        ("failed", "http_502", 502),
        ("failed", "http_404", 404),
        ("failed", "unreadable_answer", 200),
    ]
    assert json.dumps([row["error_message"] for row in rows]).count("html") == 0
