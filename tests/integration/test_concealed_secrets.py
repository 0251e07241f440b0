"""Nothing but the upstream's connection has a central key, and no file or page has the password of the proxy."""

from __future__ import annotations

import base64
import threading
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC
from tests.support import fixtures
from tests.support.authority import Authority
from tests.support.client import RawHttp1, gateway_client
from tests.support.in_process import InProcessWeb
from tests.support.script import Gate, Pause
from tests.support.upstream import Answer, ScriptedUpstream

STREAMING = fixtures.case("messages/simple/streaming")
CENTRAL = "sk-ant-central-0123456789abcdefghij"
PASSWORD = "correct-horse-battery"
WRONG = "nearly-correct-horse"

ANTHROPIC_KEY = f"name: anthropic, type: anthropic, api_key: {CENTRAL}, base_url: 'URL'"
OPENAI_KEY = f"name: openai, type: openai, api_key: {CENTRAL}, base_url: 'URL/v1'"
BEDROCK = (
    "name: anthropic, type: anthropic, bedrock: {region: us-east-1, model: a, small_fast_model: b,"
    f" access_key: AKIA0123456789ABCDEF, secret_key: {CENTRAL}, base_url: 'URL'}}"
)


@pytest.mark.parametrize(
    ("provider", "path", "header"),
    [
        (ANTHROPIC_KEY, "/anthropic/v1/messages", "x-api-key"),
        (ANTHROPIC_KEY, "/anthropic/v1/messages/count_tokens", "x-api-key"),
        (OPENAI_KEY, "/openai/v1/chat/completions", "authorization"),
        (OPENAI_KEY, "/openai/v1/responses/input_tokens", "authorization"),
        (BEDROCK, "/anthropic/v1/messages", "authorization"),
    ],
)
@pytest.mark.parametrize("size", ["1MiB", "1"], ids=["buffered", "streamed"])
def test_mitmweb_shows_no_central_key_before_the_answer_has_come(
    tmp_path: Path,
    ca: Authority,
    mitmproxy_ca: Path,
    upstream: ScriptedUpstream,
    provider: str,
    path: str,
    header: str,
    size: str,
) -> None:
    gate = Gate()
    upstream.answer(Answer(200, [("content-type", "application/json")], b"{}", before=[Pause(gate)]))
    config = f"limits: {{passthrough_body: {size}}}\nproviders: [{{{provider.replace('URL', upstream.url)}}}]\n"
    with InProcessWeb(tmp_path, upstream_ca=ca.pem, mitmproxy_ca=mitmproxy_ca, config=config) as proxy:
        statuses: list[int] = []

        def ask() -> None:
            with gateway_client(proxy) as client:
                statuses.append(client.post(path, content=STREAMING.request).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            gate.wait_reached()
            with urlopen(proxy.web_url("/flows"), timeout=20) as answer:
                shown = answer.read().decode()
        finally:
            gate.open()
            asking.join()
        assert statuses == [200]
        [request] = upstream.requests
        sent = request.header(header) or ""
        assert CENTRAL in sent or "Signature=" in sent
        assert sent not in shown and CENTRAL not in shown
        assert "..." in shown  # the hint


USERS = ["proxyauth=alice:" + PASSWORD]


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"alice:{password}".encode()).decode()


def test_a_saved_flow_has_no_password_of_the_proxy(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    file = tmp_path / "flows"
    proxy = start_proxy(
        config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]",
        options=USERS,
        arguments=["-w", str(file)],
    )
    answer = Answer.event_stream(STREAMING.body)
    for password, status in ((PASSWORD, 200), (WRONG, 401)):
        with gateway_client(proxy) as client:
            for header in ("authorization", "proxy-authorization"):
                for path in ("/anthropic/v1/messages", "/anthropic/v1/models", "/none"):
                    upstream.answer(*[answer] * (status == 200 and path != "/none"))
                    seen = client.post(path, content=STREAMING.request, headers={header: basic(password)})
                    assert seen.status_code == (404 if status == 200 and path == "/none" else status)
        with RawHttp1.connect("127.0.0.1", proxy.port) as raw:
            host = f"{ANTHROPIC}:443"
            raw.send(
                f"CONNECT {host} HTTP/1.1\r\nhost: {host}\r\nproxy-authorization: {basic(password)}\r\n\r\n".encode()
            )
            assert raw.read_head().status == (200 if password == PASSWORD else 407)
        with RawHttp1.connect("127.0.0.1", proxy.port) as raw:
            upstream.answer(*[answer] * (password == PASSWORD))
            raw.send(
                f"GET http://{ANTHROPIC}/v1/models HTTP/1.1\r\nhost: {ANTHROPIC}\r\n"
                f"proxy-authorization: {basic(password)}\r\n\r\n".encode()
            )
            assert raw.read_head().status == (200 if password == PASSWORD else 407)
    proxy.close()
    written = file.read_bytes()
    assert b"/v1/models" in written and b"alice" in written
    for secret in (PASSWORD, WRONG):
        for form in (secret, basic(secret), basic(secret).removeprefix("Basic ")):
            assert form.encode() not in written


def test_no_request_goes_upstream_with_the_password(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(
        config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]", options=USERS
    )
    upstream.answer(Answer.json({}))
    with gateway_client(proxy) as client:
        client.post("/anthropic/v1/messages/count_tokens", content=b"{}", headers={"authorization": basic(PASSWORD)})
    [request] = upstream.requests
    assert basic(PASSWORD).encode() not in [value for _, value in request.headers]


def test_a_saved_flow_has_no_password_of_an_upstream_proxy(start_proxy: StartProxy, tmp_path: Path) -> None:
    """mitmproxy's `upstream_auth` adds it to plain requests, to a provider and to others."""
    file = tmp_path / "flows"
    with ScriptedUpstream() as proxy_behind:
        proxy = start_proxy(
            config="providers: [{name: anthropic, type: anthropic, base_url: 'http://provider.test'}]",
            mode=[f"upstream:http://127.0.0.1:{proxy_behind.port}"],
            options=[f"upstream_auth=alice:{PASSWORD}"],
            arguments=["-w", str(file)],
        )
        with RawHttp1.connect("127.0.0.1", proxy.port) as raw:
            for path in ("http://provider.test/v1/messages/count_tokens", "http://elsewhere.test/x"):
                proxy_behind.answer(Answer.json({}))
                raw.request("POST", path, [("content-type", "application/json")], b"{}")
                assert raw.read_head().status == 200
                raw.read_body()
        for request in proxy_behind.requests:
            assert request.header("proxy-authorization") == basic(PASSWORD)
        assert len(proxy_behind.requests) == 2
    proxy.close()
    written = file.read_bytes()
    assert b"count_tokens" in written and b"elsewhere" in written
    assert PASSWORD.encode() not in written and basic(PASSWORD).encode() not in written
