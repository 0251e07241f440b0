"""Memory: what passes the proxy, or is refused by it, is not kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

import psutil  # type: ignore[import-untyped]
import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import EVENTS, PATH, REQUEST, ask, config, whole
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.support.client import RawHttp1
from tests.support.codings import CODINGS, Coding, encode_stream
from tests.support.fixtures import case
from tests.support.mitmdump import Mitmdump
from tests.support.upstream import Answer, ScriptedUpstream

MEBIBYTE = 1024 * 1024
BOMB = 256 * MEBIBYTE
RSS_GROWTH = 150 * MEBIBYTE
MAX_EVENT = LIMIT = 64 * 1024
STREAM = ("content-type", "text/event-stream")
JSON = ("content-type", "application/json")
BLOCKING = case("messages/simple/blocking").body


@pytest.fixture
def proxy(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> Mitmdump:
    return mitmdump(config=config(upstream.port, f"limits: {{sse_event: {MAX_EVENT}}}"))


@cache
def bomb(coding: Coding, start: bytes, size: int = BOMB) -> bytes:
    """Blanks after a beginning that makes sense, coded."""
    return b"".join(encode_stream(_blanks(start, size), coding))


def _blanks(start: bytes, size: int) -> Iterator[bytes]:
    yield start
    for _ in range(size // (16 * MEBIBYTE)):
        yield b" " * (16 * MEBIBYTE)


def rss_while_reading(proxy: Mitmdump, upstream: ScriptedUpstream, answer: Answer) -> tuple[bytes, int]:
    """The answer's body, and the most memory that the process was seen to hold while it passed."""
    process = psutil.Process(proxy.pid)
    upstream.answer(answer)
    body = bytearray()
    most = 0
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.request("POST", PATH, body=REQUEST)
        client.read_head()
        while piece := client.read_body_chunk():
            body += piece
            most = max(most, process.memory_info().rss)
    return bytes(body), most


@pytest.mark.parametrize("coding", CODINGS[1:])
def test_a_decompression_bomb_passes_and_costs_little_memory(
    proxy: Mitmdump, upstream: ScriptedUpstream, coding: Coding
) -> None:
    upstream.answer(whole())
    ask(proxy)
    before = psutil.Process(proxy.pid).memory_info().rss
    stream, message = bomb(coding, b"".join(EVENTS[:3]) + b"data: "), bomb(coding, BLOCKING[:-1])
    for kind, body in ((STREAM, stream), (JSON, message)):
        answer = Answer(headers=[kind, ("content-encoding", coding)], body=body)
        passed, most = rss_while_reading(proxy, upstream, answer)
        assert passed == body
        assert most - before < RSS_GROWTH
    upstream.answer(whole())
    ask(proxy)
    rows = wait_for_ended(proxy, 4)
    assert [row["status"] for row in rows] == ["completed"] * 4
    usages = proxy.rows("aibridge_token_usages")
    assert [usage["completeness"] for usage in usages] == ["complete", "partial", "partial", "complete"]
    assert [usage["interception_id"] for usage in usages[1:3]] == [row["id"] for row in rows[1:3]]


def test_a_request_that_is_a_bomb_is_refused(proxy: Mitmdump, upstream: ScriptedUpstream) -> None:
    before = psutil.Process(proxy.pid).memory_info().rss
    body = bomb("gzip", b'{"model":"m","stream":true,"messages":[]')
    with Client(proxy, ANTHROPIC) as client:
        assert client.post(PATH, body, [("content-encoding", "gzip")]).status == 413
    assert upstream.requests == []
    assert psutil.Process(proxy.pid).memory_info().rss - before < RSS_GROWTH


def test_a_million_tiny_events_pass(proxy: Mitmdump, upstream: ScriptedUpstream) -> None:
    tiny = b'data: {"type":"ping"}\n\n' * 1_000
    before = psutil.Process(proxy.pid).memory_info().rss
    passed, _ = rss_while_reading(proxy, upstream, Answer.event_stream(*EVENTS[:5], *([tiny] * 1_000), *EVENTS[5:]))
    assert passed == upstream.bodies_sent[0]
    assert psutil.Process(proxy.pid).memory_info().rss - before < RSS_GROWTH
    [row] = wait_for_ended(proxy, 1)
    assert (row["status"], row["error_type"]) == ("completed", None)
    [usage] = proxy.rows("aibridge_token_usages")
    assert (usage["output_tokens"], usage["completeness"]) == (19, "complete")


def test_a_chunked_body_that_outgrows_the_limit_is_refused_and_not_kept(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream
) -> None:
    proxy = mitmdump(config=config(upstream.port, f"limits: {{request_body: {LIMIT}}}"))
    upstream.answer(whole())
    process = psutil.Process(proxy.pid)
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.request("POST", PATH, {"transfer-encoding": "chunked"})
        client.send(b"%x\r\n%b\r\n" % (LIMIT + 1, b"x" * (LIMIT + 1)))
        head = client.read_head()
        assert head.status == 413
        assert json.loads(client.read_body())["type"] == "error"
        before = process.memory_info().rss
        chunk = b"%x\r\n%b\r\n" % (MEBIBYTE, b"x" * MEBIBYTE)
        for _ in range(64):
            client.send(chunk)
        client.send(b"0\r\n\r\n")
        client.request("POST", PATH, body=REQUEST)
        assert client.read_head().status == 200, "the connection is usable once the body has been read"
        assert process.memory_info().rss - before < 32 * MEBIBYTE
    assert len(upstream.requests) == 1
