"""What an interception's row says about the circumstances of its request: host, class, client, payer and first byte."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from mitmproxy import http

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.test_reload import on_loop
from tests.support import fixtures
from tests.support.authority import Authority
from tests.support.client import gateway_client, trust
from tests.support.database import Row
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream, unused_port

SIMPLE = fixtures.case("messages/simple/blocking")
ANSWER = Answer(200, [("content-type", "application/json")], SIMPLE.body)
CLAUDE = {"user-agent": "claude-cli/2.1.197 (external, cli)"}


def request(**members: Any) -> bytes:
    return json.dumps(json.loads(SIMPLE.request) | members).encode()


def ask(
    process: RunningProxy, upstream: ScriptedUpstream, headers: dict[str, str], content: bytes = SIMPLE.request
) -> Row:
    upstream.answer(ANSWER)
    before = len(process.rows("aibridge_interceptions"))
    with gateway_client(process, "/anthropic") as client:
        assert client.post("/v1/messages", content=content, headers=headers).status_code == 200
    [row] = process.rows("aibridge_interceptions")[before:]
    return row


def prompts(process: RunningProxy, row: Row) -> list[str]:
    rows = process.rows("aibridge_user_prompts")
    return [str(prompt["prompt"]) for prompt in rows if prompt["interception_id"] == row["id"]]


@pytest.fixture
def process(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    provider = f"{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}"
    return start_proxy(config=f"actor: {{metadata: {{branch: ours}}}}\nproviders: [{provider}]\n")


def test_the_host_of_a_gateway_request_is_that_of_the_base_url(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    row = ask(process, upstream, {"x-api-key": "sk-ant-api03-0123456789"})
    assert row["upstream_host"] == httpx.URL(upstream.url).host
    assert row["billing"] == "api"
    assert row["time_to_first_byte_ms"] >= 0


class SlowUpload:
    """An addon that has requests begin a minute earlier, as if their bodies had taken so long to arrive."""

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        flow.request.timestamp_start -= 60


def test_the_first_byte_does_not_come_after_the_end(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    provider = f"{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}"
    proxy = start_proxy(config=f"providers: [{provider}]\n")
    assert proxy._master is not None
    on_loop(proxy, lambda: proxy._master.addons.add(SlowUpload()))  # type: ignore[union-attr]
    row = ask(proxy, upstream, {})
    begun, ended = (datetime.fromisoformat(str(row[name])) for name in ("started_at", "ended_at"))
    assert row["time_to_first_byte_ms"] <= round((ended - begun) / timedelta(milliseconds=1)) < 60_000


def test_the_host_of_a_proxied_request_without_a_base_url_is_the_clients(
    start_proxy: StartProxy, make_upstream: MakeUpstream, ca: Authority
) -> None:
    upstream = make_upstream(authority=ca)
    provider = "{name: ours, type: azure, hosts: [localhost]}"
    process = start_proxy(config=f"providers: [{provider}]\n", upstream_ca=ca.pem)
    upstream.answer(ANSWER)
    port = httpx.URL(upstream.url).port
    with httpx.Client(proxy=process.proxy_url, verify=trust(process), trust_env=False) as client:
        answer = client.post(f"https://localhost:{port}/anthropic/v1/messages", content=SIMPLE.request)
    assert answer.status_code == 200
    [row] = process.rows("aibridge_interceptions")
    assert (row["upstream_host"], row["billing"]) == ("localhost", None)


def test_an_answer_of_the_bridges_own_has_no_first_byte(start_proxy: StartProxy) -> None:
    provider = f"{{name: anthropic, type: anthropic, base_url: 'http://localhost:{unused_port()}'}}"
    process = start_proxy(config=f"providers: [{provider}]\n")
    with gateway_client(process, "/anthropic") as client:
        assert client.post("/v1/messages", content=SIMPLE.request).status_code == 502
    [row] = process.wait_for_rows("aibridge_interceptions", 1)
    assert (row["upstream_host"], row["time_to_first_byte_ms"]) == ("localhost", None)


@pytest.mark.parametrize(
    ("headers", "request_class"),
    [
        ({}, "prompt"),
        ({"x-claude-code-request-class": "subagent"}, "subagent"),
        ({"x-claude-code-agent-id": "a1"}, "subagent"),
        ({"x-claude-code-request-class": "auxiliary"}, "auxiliary"),
    ],
)
def test_a_prompt_is_recorded_for_a_persons_request_only(
    process: RunningProxy, upstream: ScriptedUpstream, headers: dict[str, str], request_class: str
) -> None:
    row = ask(process, upstream, CLAUDE | headers)
    assert row["request_class"] == request_class
    assert bool(prompts(process, row)) == (request_class == "prompt")


def test_what_claude_code_says_is_recorded_and_the_operators_metadata_wins(
    process: RunningProxy, upstream: ScriptedUpstream
) -> None:
    said = {
        "x-claude-code-agent-id": "a1",
        "x-claude-code-agent-type": "Explore",
        "x-claude-code-parent-agent-id": "a0",
        "x-claude-code-prompt-id": "p1",
        "authorization": "Bearer sk-ant-oat01-0123456789abcdef",
    }
    system = "# Environment\n - Primary working directory: /src/app\n\ngitStatus: …\nCurrent branch: main\n"
    row = ask(process, upstream, CLAUDE | said, request(system=[{"type": "text", "text": system}]))
    assert (row["agent_id"], row["prompt_id"], row["project"]) == ("a1", "p1", "/src/app")
    assert sum(row["metadata"].pop("context_bytes").values()) > 0
    assert row["metadata"] == {"agent_type": "Explore", "parent_agent_id": "a0", "branch": "ours"}
    assert row["billing"] == "subscription"


def test_the_form_of_a_central_key_says_who_pays(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    provider = f"{{name: anthropic, type: anthropic, base_url: '{upstream.url}', api_key: sk-ant-api03-0123456789}}"
    process = start_proxy(config=f"providers: [{provider}]\n")
    row = ask(process, upstream, {})
    assert (row["credential_kind"], row["billing"]) == ("centralized", "api")
