"""Another addon raises in a hook before the bridge's turn comes. mitmproxy then skips the scripts behind it."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.sockets import CODEX, Provider, read, served, text, through
from tests.integration.sockets import config as socket_config
from tests.support import frames
from tests.support.authority import Authority
from tests.support.client import RawHttp1
from tests.support.fixtures import case
from tests.support.in_process import InProcessProxy
from tests.support.running import ADDON
from tests.support.upstream import Answer, ScriptedUpstream

BLOCKING = case("messages/simple/blocking")
STREAM = case("messages/simple/streaming")
RAISES = "def {hook}(data):\n    raise RuntimeError('a fault for a test')\n"
HALTS = "from mitmproxy.exceptions import AddonHalt\n\ndef {hook}(data):\n    raise AddonHalt\n"
KILLS = "def {hook}(flow):\n    flow.kill()\n"
by_code = pytest.mark.parametrize("code", [RAISES, HALTS], ids=["raises", "halts"])
CREDENTIALS = ("proxy-authorization", "Basic dXNlcjpwYXNz")


class Others:
    """Starts proxies with another script before ours."""

    def __init__(self, start_proxy: StartProxy, folder: Path) -> None:
        self._start = start_proxy
        self._folder = folder

    def __call__(self, code: str, hook: str, config: str, *more: str) -> InProcessProxy:
        script = self._folder / f"{hook}.py"
        script.write_text(code.format(hook=hook))
        arguments = ("-s", str(ADDON), *more)
        return self._start(config=config, script=script, arguments=arguments, allow_traceback=True)


@pytest.fixture
def others(start_proxy: StartProxy, tmp_path: Path) -> Others:
    return Others(start_proxy, tmp_path)


def configuration(upstream: ScriptedUpstream, more: str = "") -> str:
    provider = f"{{name: anthropic, type: anthropic, base_url: '{upstream.url}', api_key: key-12345678}}"
    return f"providers:\n- {provider}\n{more}"


@pytest.mark.parametrize("hook", ["requestheaders", "request"])
@by_code
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_nothing_goes_upstream_that_the_bridge_has_not_seen(
    others: Others, upstream: ScriptedUpstream, hook: str, code: str, path: str
) -> None:
    if hook == "request" and path != "/v1/messages":
        pytest.skip("nothing of a passthrough is decided in this hook")
    proxy = others(code, hook, configuration(upstream))
    with Client(proxy, ANTHROPIC) as client:
        answer = client.ask("POST", path, [CREDENTIALS], BLOCKING.request)
    assert (answer.status, json.loads(answer.body)["type"]) == (500, "error")
    assert upstream.requests == []
    if hook == "request":
        [row] = wait_for_ended(proxy, 1)
        assert (row["status"], row["error_type"]) == ("failed", "internal_error")


@by_code
def test_a_saved_flow_that_the_bridge_has_not_seen_has_no_password(
    others: Others, upstream: ScriptedUpstream, code: str, tmp_path: Path
) -> None:
    saved = tmp_path / "flows"
    proxy = others(code, "requestheaders", configuration(upstream), "-w", str(saved))
    with Client(proxy, ANTHROPIC) as client:
        assert client.ask("POST", "/v1/messages", [CREDENTIALS], BLOCKING.request).status == 500
    proxy.close()
    assert b"/v1/messages" in saved.read_bytes()
    assert CREDENTIALS[1].split()[1].encode() not in saved.read_bytes()


@pytest.mark.parametrize("case_", [BLOCKING, STREAM], ids=["blocking", "streaming"])
@by_code
def test_an_answer_whose_head_the_bridge_has_not_seen_is_not_forwarded(
    others: Others, upstream: ScriptedUpstream, code: str, case_: object
) -> None:
    proxy = others(code, "responseheaders", configuration(upstream))
    upstream.answer(Answer(headers=[("content-type", "application/json")], body=BLOCKING.body))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", BLOCKING.request).status == 500
    [row] = wait_for_ended(proxy, 1)
    assert (row["status"], row["error_type"]) == ("failed", "internal_error")


@pytest.mark.parametrize("hook", ["response", "error"])
@by_code
def test_the_end_of_an_answer_is_recorded_although_the_hook_is_skipped(
    others: Others, upstream: ScriptedUpstream, hook: str, code: str
) -> None:
    proxy = others(code, hook, configuration(upstream))
    label = ("content-type", "text/event-stream")
    for answer, request in ((BLOCKING, BLOCKING.request), (STREAM, STREAM.request)):
        headers = [label] if answer is STREAM else [("content-type", "application/json")]
        upstream.answer(Answer(headers=headers, body=answer.body))
        with Client(proxy, ANTHROPIC) as client:
            assert client.post("/v1/messages", request).body == answer.body
    rows = wait_for_ended(proxy, 2)
    assert [row["status"] for row in rows] == ["completed"] * 2


@pytest.mark.parametrize("hook", ["requestheaders", "request", "responseheaders", "response"])
def test_a_killed_flow_has_an_end(others: Others, upstream: ScriptedUpstream, hook: str) -> None:
    proxy = others(KILLS, hook, configuration(upstream))
    upstream.answer(Answer(headers=[("content-type", "application/json")], body=BLOCKING.body))
    with Client(proxy, ANTHROPIC) as client, pytest.raises(EOFError):
        client.post("/v1/messages", BLOCKING.request)
    if hook != "requestheaders":
        [row] = wait_for_ended(proxy, 1)
        assert row["status"] in ("failed", "completed")


@pytest.mark.parametrize("hook", ["server_connect", "http_connect", "requestheaders"])
@by_code
def test_the_egress_guard_cannot_be_skipped(others: Others, make_upstream: MakeUpstream, hook: str, code: str) -> None:
    secret = make_upstream()
    proxy = others(code, hook, configuration(make_upstream(), "egress: {guard: 'on'}\n"))
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        client.send(f"CONNECT localhost:{secret.port} HTTP/1.1\r\nhost: localhost:{secret.port}\r\n\r\n".encode())
        assert client.read_head().status in (403, 500, 502)
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        client.request("GET", f"http://127.0.0.1:{secret.port}/")
        assert client.read_head().status in (403, 500, 502)
    assert secret.connections == 0


@pytest.mark.parametrize("hook", ["next_layer", "tls_clienthello"])
@by_code
def test_a_foreign_host_is_not_decrypted(
    others: Others, make_upstream: MakeUpstream, ca: Authority, hook: str, code: str
) -> None:
    foreign = make_upstream()
    config = "providers:\n- {name: anthropic, type: anthropic, api_key: key-12345678}\n"
    proxy = others(code, hook, config)
    with RawHttp1.connect("127.0.0.1", proxy.port) as tunnel:
        tunnel.send(f"CONNECT localhost:{foreign.port} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert tunnel.read_head().status == 200
        context = ssl.create_default_context(cafile=str(ca.pem))  # it does not trust mitmproxy's authority
        with context.wrap_socket(tunnel.socket, server_hostname="localhost") as relayed:
            assert relayed.version()


@pytest.mark.parametrize("hook", ["websocket_start", "websocket_message", "websocket_end"])
@by_code
def test_no_message_of_a_websocket_passes_that_the_bridge_has_not_read(others: Others, hook: str, code: str) -> None:
    provider = Provider()
    events = text(*frames.events(CODEX))
    with served(provider.serve) as provider.port:
        proxy = others(code, hook, socket_config(provider.port))
        provider.answer(*events)
        with through(proxy) as client:
            client.send(frames.create(CODEX).decode())
            answers = read(client, 1 if hook == "websocket_message" else len(events))
        if hook == "websocket_message":
            assert json.loads(str(answers[0][0]))["status"] == 500
            assert provider.received == []
            return
        assert answers == [[event] for event in events]
        [row] = wait_for_ended(proxy, 1)
        assert row["status"] == "completed"
