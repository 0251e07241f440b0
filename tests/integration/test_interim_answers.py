"""Interim answers (1xx) of an HTTP/1.1 upstream: the client gets the final answer, and the row is about that one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest

from aibridge_addon.proxy.stream.http1 import MAX_INTERIM, is_interim
from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.support.client import RawHttp1
from tests.support.fixtures import case
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, RawAnswer, ScriptedUpstream

BLOCKING, STREAMING = case("messages/simple/blocking"), case("messages/simple/streaming")
PATH = "/v1/messages"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\nretry-after: 1\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\ncontent-length: 9\r\n\r\n"
BARE = b"HTTP/1.1 100\r\n\r\n"
UNKNOWN = b"HTTP/1.1 199 Odd\r\n\r\n"
LF_ONLY = b"HTTP/1.1 103 Early Hints\n\n"
INTERIM = {
    "100": [CONTINUE],
    "102": [PROCESSING],
    "103": [HINTS],
    "no reason": [BARE],
    "unknown": [UNKNOWN],
    "only LF": [LF_ONLY],
    "several": [CONTINUE, PROCESSING, HINTS, PROCESSING],
    "as many as are allowed": [PROCESSING] * MAX_INTERIM,
}
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])


def json_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def stream_answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP1])


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(
        config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}', max_retries: 0}}]"
    )


@pytest.mark.parametrize("interim", INTERIM.values(), ids=INTERIM)
@VERSIONS
def test_the_client_gets_the_final_answer(
    upstream: ScriptedUpstream, proxy: RunningProxy, http2: bool, interim: Sequence[bytes]
) -> None:
    with Client(proxy, ANTHROPIC, http2=http2) as client:
        for found, final in ((BLOCKING, json_answer(BLOCKING.body)), (STREAMING, stream_answer(STREAMING.body))):
            # Each by itself, as with a slow answer, and all at once.
            upstream.answer(RawAnswer([*interim, final], close=False))
            upstream.answer(RawAnswer([b"".join([*interim, final])], close=False))
            for _ in range(2):
                seen = client.post(PATH, found.request)
                assert (seen.status, seen.body) == (200, found.body)
    rows = wait_for_ended(proxy, 4)
    assert {(row["status"], row["http_status"]) for row in rows} == {("completed", 200)}


@pytest.mark.parametrize("size", [1, 3, 7, 24, 25, 26])
def test_they_may_come_in_any_pieces(upstream: ScriptedUpstream, proxy: RunningProxy, size: int) -> None:
    data = CONTINUE + HINTS + json_answer(BLOCKING.body)
    upstream.answer(RawAnswer(list(pieces(data, size)), close=False))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post(PATH, BLOCKING.request).body == BLOCKING.body


def test_a_passthrough_has_them_dropped_too(upstream: ScriptedUpstream, proxy: RunningProxy) -> None:
    upstream.answer(RawAnswer([HINTS, json_answer(b"{}")], close=False))
    with Client(proxy, ANTHROPIC) as client:
        seen = client.ask("GET", "/v1/models")
    assert (seen.status, seen.body, "link" in seen.headers) == (200, b"{}", False)


def test_requests_to_other_hosts_too(make_upstream: MakeUpstream, proxy: RunningProxy) -> None:
    other = make_upstream(authority=None)
    other.answer(RawAnswer([PROCESSING, json_answer(b"{}")], close=False))
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        client.request("GET", f"{other.url}/page")
        assert client.read_head().status == 200
        assert client.read_body() == b"{}"


def test_too_many_are_an_error_of_the_upstream(upstream: ScriptedUpstream, proxy: RunningProxy) -> None:
    upstream.answer(RawAnswer([PROCESSING * (MAX_INTERIM + 1), json_answer(BLOCKING.body)]))
    with Client(proxy, ANTHROPIC) as client:
        seen = client.post(PATH, BLOCKING.request)
    assert (seen.status, json.loads(seen.body)["type"]) == (502, "error")
    [row] = wait_for_ended(proxy, 1)
    assert row["error_type"] == "upstream_unreachable"


def test_each_request_may_have_as_many(upstream: ScriptedUpstream, proxy: RunningProxy) -> None:
    answers = [RawAnswer([PROCESSING * MAX_INTERIM, json_answer(BLOCKING.body)], close=False) for _ in range(2)]
    upstream.answer(*answers)
    with Client(proxy, ANTHROPIC) as client:
        assert [client.post(PATH, BLOCKING.request).status for _ in range(2)] == [200, 200]


def test_a_connection_that_ends_after_one_is_an_error(upstream: ScriptedUpstream, proxy: RunningProxy) -> None:
    upstream.answer(RawAnswer([PROCESSING]))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post(PATH, BLOCKING.request).status == 502


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"HTTP/1.1 100 Continue\r\n", True),
        (b"HTTP/1.0 103 x", True),
        (b"HTTP/1.1  102\t x", True),
        (b"HTTP/1.1 101 Switching Protocols\r\n", False),
        (b"HTTP/1.1 200 OK", False),
        (b"HTTP/1.1 ", False),
        (b"", False),
    ],
)
def test_the_status_decides(head: bytes, expected: bool) -> None:
    assert is_interim(head) is expected
