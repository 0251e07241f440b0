"""What a central key may be used for: GET, HEAD and POST of known routes, and the Responses socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.exchanges import OPENAI, Client, wait_for_ended
from tests.support.authority import Authority
from tests.support.client import RawHttp1
from tests.support.in_process import InProcessProxy
from tests.support.running import RunningProxy
from tests.support.script import RawAnswer, Request
from tests.support.upstream import HTTP1, Answer, AnyAnswer, ScriptedUpstream

KEY = "sk-central-0123456789abcdef"
OWN = "sk-client-0123456789abcdef"
COMPACTED = {
    "id": "resp_1",
    "object": "response.compaction",
    "output": [],
    "usage": {"input_tokens": 7, "output_tokens": 3},
}
HANDSHAKE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: %b\r\n\r\n"


def answer(request: Request) -> AnyAnswer:
    """Switch to whatever protocol a request asks for, or asks not for."""
    wish = request.header("upgrade") or request.header("x-switch")
    if wish is not None:
        return RawAnswer([SWITCH % wish.encode(), b"unread"])
    if request.path.endswith("/compact"):
        return Answer.json(COMPACTED)
    return Answer.json({"data": []})


@pytest.fixture(scope="module")
def upstream(ca: Authority) -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(authority=ca, alpn=[HTTP1], handler=answer) as started:
        yield started


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream, ca: Authority, mitmproxy_ca: Path
) -> Iterator[RunningProxy]:
    config = (
        f"providers: [{{name: openai, type: openai, base_url: '{upstream.url}/v1', api_key: {KEY}, max_retries: 0}}]"
    )
    folder = tmp_path_factory.mktemp("proxy")
    with InProcessProxy(folder, config=config, upstream_ca=ca.pem, mitmproxy_ca=mitmproxy_ca) as started:
        yield started


def ask(
    proxy: RunningProxy, gateway: bool, method: str, path: str, headers: dict[str, str], body: bytes | None = None
) -> int:
    if gateway:
        client, path = RawHttp1.connect("127.0.0.1", proxy.port), f"/openai{path}"
    else:
        client = RawHttp1.through_proxy(proxy, OPENAI, 443)
    with client:
        client.request(method, path, headers, body)
        return client.read_head().status


def keys_seen(upstream: ScriptedUpstream, before: int) -> list[str | None]:
    return [request.header("authorization") for request in upstream.requests[before:]]


WAYS = pytest.mark.parametrize("gateway", [True, False], ids=["gateway", "proxy"])
PATHS = ["/v1/models", "/v1/models/gpt-5", "/v1/responses/resp_1", "/v1/conversations/c_1", "/v1/chat/completions"]


@WAYS
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["TRACE", "DELETE", "PUT", "PATCH", "OPTIONS", "LOCK", "delete"])
def test_other_methods_get_no_key(
    proxy: RunningProxy, upstream: ScriptedUpstream, gateway: bool, path: str, method: str
) -> None:
    before = len(upstream.requests)
    status = ask(proxy, gateway, method, path, {})
    assert (status == 404) is gateway
    assert keys_seen(upstream, before) == ([] if gateway else [None])


@WAYS
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/responses/resp_1", "/v1/conversations/c_1"])
def test_reading_and_posting_get_it(
    proxy: RunningProxy, upstream: ScriptedUpstream, gateway: bool, method: str, path: str
) -> None:
    before = len(upstream.requests)
    assert ask(proxy, gateway, method, path, {}, b"{}" if method == "POST" else None) == 200
    assert keys_seen(upstream, before) == [f"Bearer {KEY}"]


@WAYS
@pytest.mark.parametrize("path", ["/v1/models", "/v1/responses/resp_1", "/v1/conversations", "/v1/realtime"])
@pytest.mark.parametrize("protocol", ["websocket", "WebSocket", "h2c, websocket"])
def test_a_websocket_elsewhere_gets_no_key(
    proxy: RunningProxy, upstream: ScriptedUpstream, gateway: bool, path: str, protocol: str
) -> None:
    before = len(upstream.requests)
    status = ask(proxy, gateway, "GET", path, HANDSHAKE | {"upgrade": protocol})
    assert (status == 404) is gateway
    assert f"Bearer {KEY}" not in keys_seen(upstream, before)


@WAYS
@pytest.mark.parametrize("protocol", ["websocket", "h2c", "HTTP/2.0, foo", ""])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/responses/compact"), ("POST", "/v1/models"), ("HEAD", "/v1/models")],
)
def test_an_upgrade_of_another_request_is_dropped(
    proxy: RunningProxy, upstream: ScriptedUpstream, gateway: bool, protocol: str, method: str, path: str
) -> None:
    before = len(upstream.requests)
    headers = {"connection": "keep-alive, Upgrade, HTTP2-Settings", "upgrade": protocol, "http2-settings": "AAMAAABk"}
    assert ask(proxy, gateway, method, path, headers, b"{}" if method == "POST" else None) == 200
    [request] = upstream.requests[before:]
    assert request.header("upgrade") is request.header("http2-settings") is None
    assert request.header("connection") == "keep-alive"
    assert request.header("authorization") == f"Bearer {KEY}"


@WAYS
def test_a_bridged_request_cannot_open_a_channel_with_its_own_key_either(
    proxy: RunningProxy, upstream: ScriptedUpstream, gateway: bool
) -> None:
    before = len(upstream.requests)
    headers = HANDSHAKE | {"authorization": f"Bearer {OWN}"}
    assert ask(proxy, gateway, "POST", "/v1/responses/compact", headers, b"{}") == 200
    assert upstream.requests[before].header("upgrade") is None


@WAYS
@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_an_upstream_cannot_open_one_unasked(
    proxy: RunningProxy, upstream: ScriptedUpstream, gateway: bool, protocol: str
) -> None:
    for method, path in (("POST", "/v1/responses/compact"), ("GET", "/v1/models")):
        body = b"{}" if method == "POST" else None
        assert ask(proxy, gateway, method, path, {"x-switch": protocol}, body) == 502


def test_the_responses_socket_may_switch_to_nothing_else(proxy: RunningProxy) -> None:
    assert ask(proxy, True, "GET", "/v1/responses", HANDSHAKE | {"upgrade": "websocket, h2c"}) == 502
    assert ask(proxy, True, "GET", "/v1/responses", HANDSHAKE | {"sec-websocket-version": "8"}) == 426
    assert ask(proxy, True, "GET", "/v1/responses", HANDSHAKE) == 101


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
def test_a_compaction_with_a_central_key_is_recorded(
    proxy: RunningProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    body = json.dumps({"model": f"gpt-5-{http2}", "input": "hi"}).encode()
    before = len(upstream.requests)
    with Client(proxy, OPENAI, http2=http2) as client:
        seen = client.post("/v1/responses/compact", body, [("content-type", "application/json")])
    assert json.loads(seen.body) == COMPACTED
    assert keys_seen(upstream, before) == [f"Bearer {KEY}"]
    [row] = [row for row in wait_for_ended(proxy, 1) if row["model"] == f"gpt-5-{http2}"]
    assert (row["route"], row["status"], row["credential_kind"]) == (
        "/v1/responses/compact",
        "completed",
        "centralized",
    )
    [tokens] = [found for found in proxy.rows("aibridge_token_usages") if found["interception_id"] == row["id"]]
    assert (tokens["input_tokens"], tokens["output_tokens"]) == (7, 3)
