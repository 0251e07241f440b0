"""Heads of requests that servers read in different ways: refused with 400, and nothing of them goes upstream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.answers import PATH, REQUEST, SIMPLE, config, whole
from tests.integration.exchanges import ANTHROPIC
from tests.support.authority import Authority
from tests.support.client import RawHttp1
from tests.support.client_h2 import RawHttp2
from tests.support.in_process import InProcessProxy
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, ScriptedUpstream

KEY = b"sk-client-1234567890123"
BODY = b"content-length: %d\r\n\r\n%b" % (len(REQUEST), REQUEST)


@pytest.fixture(scope="module")
def upstream(ca: Authority) -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(authority=ca, alpn=[HTTP1]) as started:
        yield started


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream, ca: Authority, mitmproxy_ca: Path
) -> Iterator[RunningProxy]:
    folder = tmp_path_factory.mktemp("proxy")
    with InProcessProxy(folder, config=config(upstream.port), upstream_ca=ca.pem, mitmproxy_ca=mitmproxy_ca) as started:
        yield started
    assert not started.has_traceback


REFUSED = pytest.mark.usefixtures("nothing_goes_upstream")


@pytest.fixture
def nothing_goes_upstream(upstream: ScriptedUpstream) -> Iterator[None]:
    before = len(upstream.requests)
    yield
    assert len(upstream.requests) == before


HEADERS = {
    "a bare CR in a value": b"x-a: b\rx-evil: c\r\n",
    "a bare CR at the end of a value": b"x-a: b\r\r\n",
    "a bare CR in a name": b"x\r-a: b\r\n",
    "a NUL in a value": b"x-a: b\0c\r\n",
    "a NUL in a name": b"x\0-a: b\r\n",
    "a NUL in Host": b"host: api\0.anthropic.com\r\n",
    "obs-fold with a blank": b"x-a: b\r\n c\r\n",
    "obs-fold with a tab": b"x-a: b\r\n\tc\r\n",
    "obs-fold after a bare LF": b"x-a: b\n c\r\n",
    "obs-fold that looks like a header": b"x-a: b\r\n content-length: 5\r\n",
    "obs-fold of nothing": b"x-a: b\r\n \r\nx-c: d\r\n",
    "a bare CR in Content-Length": b"content-length: 5\r\r\n",
    "a folded Transfer-Encoding": b"transfer-encoding:\r\n chunked\r\n",
}
LINES = {
    "a bare CR in the method": b"PO\rST %b HTTP/1.1\r\n",
    "a bare CR as a blank": b"POST\r%b HTTP/1.1\r\n",
    "a bare CR before the version": b"POST %b\rHTTP/1.1\r\n",
    "a bare CR behind the version": b"POST %b HTTP/1.1\r\r\n",
    "a NUL in the path": b"POST %b?a=\0 HTTP/1.1\r\n",
    "a control character in the path": b"POST %b?a=\x01 HTTP/1.1\r\n",
    "a DEL in the path": b"POST %b?a=\x7f HTTP/1.1\r\n",
    "a blank before the first header": b"POST %b HTTP/1.1\r\n x-a: b\r\n",
    "a method that is no token": b"PO(ST %b HTTP/1.1\r\n",
}
HEADS = {name: b"POST %b HTTP/1.1\r\n" + line for name, line in HEADERS.items()} | LINES


def assert_refused(client: RawHttp1) -> None:
    head = client.read_head()
    body = json.loads(client.read_body())
    assert (head.status, head.header("content-type")) == (400, "application/json")
    assert body["error"]["message"]
    assert client.read_to_end() == b"", "the connection is closed"


@REFUSED
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("way", ["tunnel", "gateway", "absolute form", "another host"])
def test_over_http1(proxy: RunningProxy, way: str, head: bytes) -> None:
    host = b"host: api.anthropic.com\r\nx-api-key: %b\r\n" % KEY
    if way == "tunnel":
        client, target = RawHttp1.through_proxy(proxy, ANTHROPIC, 443), PATH.encode()
    else:
        client = RawHttp1.connect("127.0.0.1", proxy.port)
        targets = {
            "gateway": f"/anthropic{PATH}",
            "absolute form": f"http://{ANTHROPIC}{PATH}",
            "another host": "http://foreign.test/page",
        }
        target = targets[way].encode()
    with client:
        client.send(head % target + host + BODY)
        assert_refused(client)


@REFUSED
@pytest.mark.parametrize("line", HEADERS.values(), ids=HEADERS)
def test_in_a_connect(proxy: RunningProxy, line: bytes) -> None:
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        client.send(b"CONNECT api.anthropic.com:443 HTTP/1.1\r\n" + line + b"\r\n")
        assert_refused(client)


@REFUSED
def test_after_a_good_request_on_the_same_connection(proxy: RunningProxy) -> None:
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        client.send(b"GET /healthz-not-here HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.read_head().status == 404
        client.read_body()
        client.send(b"GET /anthropic/v1/models HTTP/1.1\r\nhost: x\r\nx-a: b\r\n c\r\n\r\n")
        assert_refused(client)


@REFUSED
def test_what_follows_an_unsafe_head_is_not_a_request(proxy: RunningProxy) -> None:
    smuggled = b"POST /anthropic/v1/messages HTTP/1.1\r\nhost: x\r\n" + BODY
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        client.send(b"POST /anthropic/v1/messages HTTP/1.1\r\nhost: x\r\nx: y\0\r\n\r\n" + smuggled)
        assert_refused(client)


@REFUSED
@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: +5\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"x a: b\r\n",
        b"no colon\r\n",
    ],
)
def test_mitmproxys_own_checks_answer_in_the_same_shape(proxy: RunningProxy, lines: bytes) -> None:
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        client.send(b"POST /anthropic/v1/messages HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\nhello")
        head = client.read_head()
        body = json.loads(client.read_body())
    assert (head.status, head.header("connection")) == (400, "close")
    assert "error" in body


@REFUSED
def test_the_error_of_a_providers_route_has_the_providers_shape(proxy: RunningProxy) -> None:
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.send(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx: y\0\r\n" + BODY)
        assert client.read_head().status == 400
        error = json.loads(client.read_body())
    assert error == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "the request's head has a bare CR or a NUL"},
    }


PATHS = {
    "a blank": "/v1/messages HTTP/1.1",
    "a blank at its end": "/v1/messages ",
    "a tab": "/v1/messages\t?a",
    "a control character": "/v1/messages?\x01",
    "a DEL": "/v1/messages?\x7f",
    "no slash": "v1/messages",
    "another host": "http://other.test/v1/messages",
}


@REFUSED
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_over_http2(proxy: RunningProxy, path: str) -> None:
    with RawHttp2.through_proxy(proxy, ANTHROPIC, 443) as client:
        stream = client.request("POST", path, [(b"x-api-key", KEY)], REQUEST)
        status, headers = client.read_head(stream)
        body = json.loads(client.read_body(stream))
        assert (status, dict(headers)[b"content-type"]) == (400, b"application/json")
        assert body["error"]["type"] == "invalid_request_error"
        assert b"connection" not in dict(headers)
        # The connection goes on.
        other = client.request("POST", "/v1/messages", [], b"no JSON")
        assert client.read_head(other)[0] == 400


FIELDS: dict[str, tuple[bytes, bytes]] = {
    "a CR": (b"x-a", b"b\rc"),
    "a LF": (b"x-a", b"b\nx-evil: c"),
    "a NUL": (b"x-a", b"b\0c"),
    "a blank at its end": (b"x-a", b"b "),
    "a blank in its name": (b"x a", b"b"),
    "an upper-case name": (b"X-A", b"b"),
    "a header of the connection": (b"transfer-encoding", b"chunked"),
    "an unknown pseudo-header": (b":x", b"b"),
}


@REFUSED
@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_a_header_over_http2(proxy: RunningProxy, field: tuple[bytes, bytes]) -> None:
    with RawHttp2.through_proxy(proxy, ANTHROPIC, 443) as client:
        before = client.request("POST", "/v1/messages", [], b"no JSON")
        stream = client.request("POST", PATH, [field], REQUEST)
        assert client.read_head(stream)[0] == 400
        assert json.loads(client.read_body(stream))["error"]["type"] == "invalid_request_error"
        after = client.request("POST", "/v1/messages", [], b"no JSON")
        assert [client.read_head(other)[0] for other in (before, after)] == [400, 400], "others on it go on"


@REFUSED
def test_a_malformed_request_that_is_reset_at_once_leaves_the_others_alone(proxy: RunningProxy) -> None:
    with RawHttp2.through_proxy(proxy, ANTHROPIC, 443) as client:
        before = client.request("POST", "/v1/messages", [], b"no JSON")
        client.request("POST", PATH, [FIELDS["a NUL"]], reset=True)
        after = client.request("POST", "/v1/messages", [], b"no JSON")
        assert [client.read_head(other)[0] for other in (before, after)] == [400, 400]


@REFUSED
@pytest.mark.parametrize("authority", ["a b", "host:port", "x@y:1:2", "\0"])
def test_an_authority_over_http2(proxy: RunningProxy, authority: str) -> None:
    with RawHttp2.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.authority = authority
        assert client.read_head(client.request("GET", "/v1/models"))[0] == 400
        client.authority = ANTHROPIC
        assert client.read_head(client.request("POST", "/v1/messages", [], b"no JSON"))[0] == 400


@REFUSED
@pytest.mark.parametrize("method", ["PO ST", "GET /x HTTP/1.1", "PO\tST", "P(", ""])
def test_a_method_over_http2(proxy: RunningProxy, method: str) -> None:
    with RawHttp2.through_proxy(proxy, ANTHROPIC, 443) as client:
        stream = client.request(method, PATH, [(b"x-api-key", KEY)], REQUEST)
        assert client.read_head(stream)[0] == 400


@pytest.mark.parametrize(
    "lines",
    [
        b"x-tab: a\tb\r\nx-empty:\r\nx-utf8: \xc3\xa9\r\nx-control: a\x01b\r\nx-no-blank:a\r\nx-many:     a    \r\n",
        b"x-bare-lf: a\n",
    ],
)
def test_what_is_only_unusual_still_passes(proxy: RunningProxy, upstream: ScriptedUpstream, lines: bytes) -> None:
    upstream.answer(whole())
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.send(b"\r\nPOST /v1/messages?a=%C3%A9 HTTP/1.1\r\nhost: x\r\n" + lines + BODY)
        assert client.read_head().status == 200
        assert client.read_body() == SIMPLE.body
