"""People who log in rather than bring a key: ChatGPT's Codex backend, and Claude's subscriptions."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC
from tests.integration.sdks import answer_of, check_answer, expected, last_recorded
from tests.integration.stage import end_to_end
from tests.integration.turns import CONNECTED, MODES, Turns, call, recorded, results, text, tool_names
from tests.support import fixtures
from tests.support.client import RawHttp1, connect_through, trust
from tests.support.client_h2 import RawHttp2
from tests.support.codings import encode
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.script import Header
from tests.support.upstream import Answer, ScriptedUpstream

# Fixtures name models that their vendor has since deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")

CHATGPT = "chatgpt.com"
WAYS = ("proxy", "proxy over HTTP/2", "gateway")
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJodHRwczovL2FwaS5vcGVuYWkuY29tL2F1dGgiOnt9fQ.c2lnbmF0dXJl"
OAUTH = "sk-ant-oat01-0123456789abcdefghijklmnopqrstuvwxyz-AA"
HINTS = {JWT: "eyJh...dXJl", OAUTH: "sk-a...z-AA"}
CODEX = (
    (b"authorization", f"Bearer {JWT}".encode()),
    (b"chatgpt-account-id", b"0b6a2c9e-7d2f-4f0e-9a43-2f6c1f6b8f10"),
    (b"user-agent", b"codex_exec/0.169.0 (Debian 12.0.0; x86_64)"),
    (b"originator", b"codex_exec"),
    (b"session-id", b"019b7d9e-0000-7000-8000-000000000001"),
    (b"accept", b"text/event-stream"),
    (b"content-type", b"application/json"),
)
CLAUDE = (
    (b"authorization", f"Bearer {OAUTH}".encode()),
    (b"anthropic-version", b"2023-06-01"),
    (b"anthropic-beta", b"claude-code-20250219,oauth-2025-04-20,interleaved-thinking-2025-05-14"),
    (b"user-agent", b"claude-cli/2.1.329 (external, cli)"),
    (b"accept-encoding", b"gzip, br, zstd"),
    (b"content-type", b"application/json"),
)


def config(upstream: ScriptedUpstream, more: str = "") -> str:
    return (
        "providers:\n"
        f"  - {{name: anthropic, type: anthropic, base_url: '{upstream.url}', api_key: sk-ant-central-not-for-them}}\n"
        f"  - {{name: chatgpt, type: openai, base_url: '{upstream.url}/backend-api/codex'}}\n"
    ) + more


@pytest.fixture
def process(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=config(upstream))


def ask(process: RunningProxy, way: str, host: str, path: str, headers: tuple[Header, ...], body: bytes) -> bytes:
    """Post, and return the answer's body, untouched. `path` is that of the way."""
    headers = (*headers, (b"content-length", b"%d" % len(body)))
    if way == "proxy over HTTP/2":
        h2 = RawHttp2.through_proxy(process, host, 443)
        stream = h2.request("POST", path, headers, body)
        assert h2.read_head(stream)[0] == 200
        answer = h2.read_body(stream)
        h2.close()
        return answer
    if way == "gateway":
        raw = RawHttp1.connect("127.0.0.1", process.port)
    else:
        raw = RawHttp1(connect_through(process, host, 443, alpn=("http/1.1", "h2")), host)
    raw.request("POST", path, headers)
    raw.send(body)
    assert raw.read_head().status == 200
    answer = raw.read_body()
    raw.socket.close()
    return answer


def check_login(process: RunningProxy, token: str, name: str) -> None:
    """Recorded as a key would be, and not a trace of the token itself."""
    row = process.rows("aibridge_interceptions")[-1]
    assert (row["provider_name"], row["credential_kind"], row["credential_hint"]) == (name, "byok", HINTS[token])
    stored = process.database.read_bytes() + process.database.with_name("aibridge.db-wal").read_bytes()
    assert token.encode() not in stored and token not in process.log


# --- ChatGPT ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("compressed", [True, False], ids=["zstd", "identity"])
def test_codex_with_a_chatgpt_login_passes_untouched_and_is_recorded(
    process: RunningProxy, upstream: ScriptedUpstream, way: str, compressed: bool
) -> None:
    case = fixtures.case("responses/codex_main/streaming")
    upstream.answer(answer_of(case))
    body = encode(case.request, "zstd") if compressed else case.request
    headers = (*CODEX, *([(b"content-encoding", b"zstd")] if compressed else []))
    path = "/chatgpt/v1/responses" if way == "gateway" else "/backend-api/codex/responses"
    assert ask(process, way, CHATGPT, path, headers, body) == case.body
    [request] = upstream.requests
    assert (request.target, request.body) == ("/backend-api/codex/responses", body)
    sent = (*headers, (b"content-length", b"%d" % len(body)))
    assert end_to_end(request.headers, keep_case=False) == list(sent)
    assert last_recorded(process) == expected(case)
    [row] = process.rows("aibridge_interceptions")
    assert (row["provider"], row["route"], row["client"]) == ("openai", "/v1/responses", "Codex")
    assert row["client_session_id"] == "019b7d9e-0000-7000-8000-000000000001"
    check_login(process, JWT, "chatgpt")


def test_the_rest_of_chatgpt_is_passed_on_and_not_recorded(process: RunningProxy, upstream: ScriptedUpstream) -> None:
    body = b'{"events": []}'
    upstream.answer(Answer.json({}))
    assert ask(process, "proxy", CHATGPT, "/backend-api/wham/analytics", CODEX, body)
    [request] = upstream.requests
    assert (request.target, request.body) == ("/backend-api/wham/analytics", body)
    assert process.rows("aibridge_interceptions") == []


# --- Claude -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["streaming", "blocking"])
def test_a_claude_subscription_passes_untouched_and_is_recorded(
    process: RunningProxy, upstream: ScriptedUpstream, way: str, mode: str
) -> None:
    """Also where there is a central key: the login is the client's own credential."""
    case = fixtures.case(f"messages/claude_code_main/{mode}")
    upstream.answer(answer_of(case))
    path = "/v1/messages?beta=true"
    prefix = "/anthropic" if way == "gateway" else ""
    assert ask(process, way, ANTHROPIC, prefix + path, CLAUDE, case.request) == case.body
    [request] = upstream.requests
    assert (request.target, request.body) == (path, case.request)
    sent = (*CLAUDE, (b"content-length", b"%d" % len(case.request)))
    assert end_to_end(request.headers, keep_case=False) == list(sent)
    assert last_recorded(process) == expected(case)
    [row] = process.rows("aibridge_interceptions")
    assert row["client"] == "Claude Code"
    check_login(process, OAUTH, "anthropic")


@pytest.mark.parametrize("way", ["proxy", "gateway"])
def test_anthropics_sdk_with_a_login_is_recorded(process: RunningProxy, upstream: ScriptedUpstream, way: str) -> None:
    options: dict[str, Any] = {"timeout": 10.0, "trust_env": False}
    url = f"{process.proxy_url}/anthropic"
    if way == "proxy":
        options |= {"proxy": process.proxy_url, "verify": trust(process)}
        url = f"https://{ANTHROPIC}"
    client = anthropic.Anthropic(
        auth_token=OAUTH,
        base_url=url,
        max_retries=0,
        default_headers={"anthropic-beta": "oauth-2025-04-20"},
        http_client=anthropic.DefaultHttpxClient(**options),
    )
    case = fixtures.case("messages/thinking/streaming")
    upstream.answer(answer_of(case))
    body = json.loads(case.request)
    del body["stream"]
    with client, client.messages.stream(**body) as stream:
        check_answer(case, stream.get_final_message().to_dict())
    assert last_recorded(process) == expected(case)
    [request] = upstream.requests
    assert request.values("authorization") == [f"Bearer {OAUTH}"]
    assert request.values("x-api-key") == []
    assert request.values("anthropic-beta") == ["oauth-2025-04-20"]
    check_login(process, OAUTH, "anthropic")


# --- the tool loop ------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("dialect", ["responses", "messages"])
def test_every_turn_is_asked_as_the_person_who_logged_in(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, dialect: str, streaming: bool
) -> None:
    """A compressed request is changed in the clear: then nothing says that it is compressed."""
    proxy = start_proxy(config=config(upstream, f"mcp: {{servers: {{ours: {{type: http, url: '{ours.url}'}}}}}}\n"))
    proxy.wait_for_log(CONNECTED)
    turns = Turns(dialect, [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    upstream.answer(*turns.answers(streaming=streaming))
    body = encode(turns.request(streaming=streaming), "zstd")
    host, path, headers, token, name = (
        (CHATGPT, "/backend-api/codex/responses", CODEX, JWT, "chatgpt")
        if dialect == "responses"
        else (ANTHROPIC, "/v1/messages", CLAUDE, OAUTH, "anthropic")
    )
    answer = ask(proxy, "proxy", host, path, (*headers, (b"content-encoding", b"zstd")), body)
    turns.check(answer, streaming=streaming)
    assert recorded(proxy).outcome == ("completed", 2, None)
    first, second = upstream.requests
    assert "bmcp_ours_echo" in tool_names(first) and results(second) == ["hi"]
    for request in (first, second):
        assert request.target == path
        assert request.header("content-encoding") is None
        for header in headers:
            if header[0] != b"accept-encoding":
                assert header in [(field.lower(), value) for field, value in request.headers]
    check_login(proxy, token, name)
