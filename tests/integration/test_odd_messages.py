"""Messages that HTTP allows or that clients send all the same: trailers, lengths that are no numbers, HEAD."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.test_broken_upstreams import Alpn, every_way
from tests.support.client import RawHttp1
from tests.support.client_h2 import RawHttp2
from tests.support.fixtures import case
from tests.support.running import ADDON, RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

MESSAGE = case("messages/simple/blocking")
STREAM = case("messages/simple/streaming")
TRAILERS = [("x-checksum", "1"), ("x-other", "2")]
JSON = ("content-type", "application/json")
SSE = ("content-type", "text/event-stream")
PATHS = ("/v1/messages", "/v1/messages/count_tokens")
"""A bridged route, and one whose body is streamed."""


def whole(body: bytes) -> Answer:
    return Answer(headers=[JSON], body=body)


def configuration(upstream: ScriptedUpstream, more: str = "") -> str:
    return f"providers:\n- {{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}\n{more}"


@pytest.fixture
def alpn() -> Alpn:
    return "http/1.1"


@pytest.fixture
def upstream(make_upstream: MakeUpstream, alpn: Alpn) -> ScriptedUpstream:
    return make_upstream(alpn=[alpn])


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=configuration(upstream))


@every_way
def test_trailers_of_a_request_do_not_break_it(proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool) -> None:
    for path in (*PATHS, *PATHS):
        upstream.answer(whole(MESSAGE.body))
        with Client(proxy, ANTHROPIC, http2=http2) as client:
            raw = client.raw
            if isinstance(raw, RawHttp2):
                fields = [(name.encode(), value.encode()) for name, value in TRAILERS]
                stream = raw.request("POST", path, [], MESSAGE.request, fields)
                assert raw.read_head(stream)[0] == 200 and raw.read_body(stream) == MESSAGE.body
            else:
                raw.request("POST", path, [("transfer-encoding", "chunked"), ("trailer", "x-checksum")])
                lines = "".join(f"{name}: {value}\r\n" for name, value in TRAILERS).encode()
                raw.send(b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(MESSAGE.request), MESSAGE.request, lines))
                assert raw.read_head().status == 200 and raw.read_body() == MESSAGE.body
                upstream.answer(whole(MESSAGE.body))
                assert client.post(path, MESSAGE.request).status == 200, "the connection is usable"
        assert all(request.body == MESSAGE.request for request in upstream.requests)
    rows = wait_for_ended(proxy, 2)
    assert {row["status"] for row in rows} == {"completed"}


@every_way
def test_trailers_of_an_answer_do_not_break_it(proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool) -> None:
    for answer, request in ((MESSAGE, MESSAGE.request), (STREAM, STREAM.request)):
        for path in PATHS:
            label = SSE if answer is STREAM else JSON
            upstream.answer(Answer(headers=[label], body=answer.body, trailers=TRAILERS), whole(MESSAGE.body))
            with Client(proxy, ANTHROPIC, http2=http2) as client:
                assert client.post(path, request).body == answer.body
                assert client.post(path, MESSAGE.request).body == MESSAGE.body, "the connection is usable"
    rows = wait_for_ended(proxy, 4)
    assert {row["status"] for row in rows} == {"completed"}


@pytest.mark.parametrize(
    "length", ["NaN", "0x4e", "78, 78", "-1", "", " ", "+78", "1_0", "\u0667", "9" * 30, "9" * 5000]
)
def test_a_length_that_is_no_number_is_answered(proxy: RunningProxy, upstream: ScriptedUpstream, length: str) -> None:
    raw_length = length.encode("utf-8")
    for path in PATHS if len(length) < 30 else PATHS[:1]:
        with Client(proxy, ANTHROPIC) as client:
            assert isinstance(client.raw, RawHttp1)
            client.raw.send(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %s\r\n\r\n" % (path.encode(), raw_length))
            head = client.raw.read_head()
            assert head.status in (400, 413) or (length.strip() == "" and head.status in (200, 400))
    assert not any(request.body for request in upstream.requests)


def test_answers_of_the_bridge_to_head_have_no_body(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """A body would be read as the next answer."""
    more = "  api_key: key-12345678\nactor: {default: someone}\nmetrics: {listen: null}\n"
    config = f"providers:\n- name: anthropic\n  type: anthropic\n  base_url: '{upstream.url}'\n{more}"
    proxy = start_proxy(config=config)
    for path in ("/", "/none/such", "/anthropic/v1/nothing", "/healthz", "/anthropic/v1/messages"):
        upstream.answer(whole(b"{}"), whole(MESSAGE.body))
        with RawHttp1.connect("127.0.0.1", proxy.port) as client:
            client.request("HEAD", path)
            assert client.read_head().status >= 200
            client.request("GET", "/anthropic/v1/models")
            head = client.read_head()
            assert head.status == 200 and client.read_body() in (b"{}", MESSAGE.body)


def test_an_unreachable_upstream_is_a_head_without_a_body(start_proxy: StartProxy) -> None:
    proxy = start_proxy(config="providers:\n- {name: anthropic, type: anthropic, base_url: 'http://127.0.0.1:9'}\n")
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        for _ in range(2):
            client.request("HEAD", "/anthropic/v1/models")
            assert client.read_head().status == 502
        client.request("GET", "/anthropic/v1/models")
        assert client.read_head().status == 502 and json.loads(client.read_body())["type"] == "error"


def test_a_head_that_requires_authentication_has_no_body(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    more = "actor: {required: true}\n"
    proxy = start_proxy(config=configuration(upstream, more))
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        for target, status in (("/anthropic/v1/models", 401), ("http://api.anthropic.com/v1/models", 407)):
            client.request("HEAD", target)
            assert client.read_head().status == status
            client.request("GET", target)
            assert client.read_head().status == status and json.loads(client.read_body())["type"] == "error"


def test_a_refused_request_whose_body_would_be_streamed_is_answered(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=configuration(upstream, "egress: {guard: 'on'}\n"))
    body = b"x" * 100_000
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        for framing in ("length", "chunked"):
            for target in ("http://192.168.1.5:11434/api/chat", "http://192.168.1.5/api/chat"):
                if framing == "length":
                    client.request("POST", target, body=body)
                else:
                    client.request("POST", target, [("transfer-encoding", "chunked")])
                    client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
                assert client.read_head().status == 403
                assert json.loads(client.read_body())["error"]["type"] == "permission_error"


ANSWERS = """
from mitmproxy import http

def requestheaders(flow):
    if flow.request.path.endswith("/answered"):
        flow.response = http.Response.make(418, b"teapot")
"""


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_addon_may_answer_a_request_whose_body_would_be_streamed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, order: str
) -> None:
    script = tmp_path / "other.py"
    script.write_text(ANSWERS)
    first, second = (script, ADDON) if order == "before" else (ADDON, script)
    proxy = start_proxy(config=configuration(upstream), script=first, arguments=("-s", str(second)))
    body = b"x" * 100_000
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        for target in ("/anthropic/v1/models/answered", "http://other.test/answered", "/anthropic/v1/files/answered"):
            client.request("POST", target, body=body)
            assert client.read_head().status == 418
            assert client.read_body() == b"teapot"
        upstream.answer(whole(MESSAGE.body))
        client.request("POST", "/anthropic/v1/messages", body=MESSAGE.request)
        assert client.read_head().status == 200
        client.read_body()
    wait_for_ended(proxy, 1)
