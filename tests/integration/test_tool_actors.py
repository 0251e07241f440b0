"""Which actors are offered which tools, request by request, with a front proxy that names actors and groups."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.turns import (
    BY_DIALECT,
    MODES,
    Turns,
    call,
    configuration,
    recorded,
    results,
    text,
    tool_names,
)
from tests.support.client import gateway_client
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, ScriptedUpstream

ACTOR = "actor: {header: X-User, groups: {header: X-Groups, ops: [root-*], team: [bob]}}"
GATEWAYS = {"messages": "/anthropic/v1/messages", "chat_completions": "/openai/v1/chat/completions"}
GATEWAYS["responses"] = "/openai/v1/responses"


def servers(server: HttpMcp, /, **entries: dict[str, Any]) -> str:
    """The servers' section: each entry is our server under another name, with these keys."""
    written = {name: {"type": "http", "url": server.url, "allow": "^echo$", **entry} for name, entry in entries.items()}
    return f"servers: {json.dumps(written)}"


def ask(proxy: RunningProxy, turns: Turns, streaming: bool, headers: dict[str, str]) -> bytes:
    with gateway_client(proxy) as client:
        answer = client.post(GATEWAYS[turns.dialect], content=turns.request(streaming=streaming), headers=headers)
    assert answer.status_code == 200
    return answer.content


@pytest.fixture
def provider(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP1])


@BY_DIALECT
def test_tools_are_offered_by_actor_and_group(
    start_proxy: StartProxy, provider: ScriptedUpstream, ours: HttpMcp, dialect: str
) -> None:
    mcp = servers(
        ours,
        all={},
        ops={"actors": {"allow": ["@ops", "@on-call"]}},
        named={"actors": {"allow": ["ada", "b*"], "deny": ["@team"]}},
    )
    proxy = start_proxy(config=configuration(provider.url, mcp, ACTOR))
    for name in ("all", "ops", "named"):
        proxy.wait_for_log(f"MCP server {name}: connected")
    turns = Turns(dialect, [text("Hello.")])
    callers: dict[str, tuple[dict[str, str], set[str]]] = {
        "by pattern": ({"X-User": "root-1"}, {"all", "ops"}),
        "by name": ({"X-User": "ada"}, {"all", "named"}),
        "by trusted header": ({"X-User": "ada", "X-Groups": "x, on-call"}, {"all", "ops", "named"}),
        "denied by group": ({"X-User": "bob"}, {"all"}),
        "denied by a named group": ({"X-User": "ada", "X-Groups": "team"}, {"all"}),
        "by name again": ({"X-User": "ada"}, {"all", "named"}),
    }
    for headers, _ in callers.values():
        provider.answer(*turns.answers(streaming=False))
        ask(proxy, turns, False, headers)
    offered = [{name[5:-5] for name in tool_names(request) if name != "Read"} for request in provider.requests]
    assert offered == [expected for _, expected in callers.values()]
    assert provider.requests[1].body == provider.requests[5].body


@MODES
@BY_DIALECT
def test_a_call_of_a_tool_that_the_actor_may_not_use_is_not_run(
    start_proxy: StartProxy, provider: ScriptedUpstream, ours: HttpMcp, dialect: str, streaming: bool
) -> None:
    """The model may know its name from elsewhere: from a history, or from a shared prompt."""
    mcp = servers(ours, ours={"actors": {"allow": ["ada"]}}, other={})
    proxy = start_proxy(config=configuration(provider.url, mcp, ACTOR))
    proxy.wait_for_log("MCP server ours: connected")
    proxy.wait_for_log("MCP server other: connected")
    turns = Turns(dialect, [call("echo", text="hi")], [text("Done.")])
    for user, ran in (("ada", ["ours"]), ("eve", [])):
        provider.answer(*turns.answers(streaming=streaming))
        ask(proxy, turns, streaming, {"X-User": user})
        rows = recorded(proxy).injected
        assert [row["server_name"] for row in rows if row["invocation_error"] is None] == ran


# --- what servers learn about the caller


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@MODES
def test_a_server_learns_actor_and_interception_and_the_clients_trace(
    start_proxy: StartProxy, provider: ScriptedUpstream, ours: HttpMcp, streaming: bool
) -> None:
    turns = Turns("messages", [call("caller"), call("meta"), call("headers")], [text("Done.")])
    more = ACTOR.removesuffix("}") + ", metadata: {team: red}}"
    proxy = start_proxy(config=configuration(provider.url, servers(ours, ours={"allow": []}), more))
    proxy.wait_for_log("MCP server ours: connected")
    provider.answer(*turns.answers(streaming=streaming))
    ask(proxy, turns, streaming, {"X-User": "ada", "traceparent": TRACEPARENT, "tracestate": "a=1"})
    named, trace, headers = map(json.loads, results(provider.requests[-1]))
    interception = recorded(proxy).interception["id"]
    assert named == {"aibridge/actor_id": "ada", "aibridge/interception_id": interception}
    assert trace == {"traceparent": TRACEPARENT, "tracestate": "a=1"}
    assert not [name for name in headers if name.startswith("x-ai-bridge")]


def test_without_a_trace_a_server_gets_none(start_proxy: StartProxy, provider: ScriptedUpstream, ours: HttpMcp) -> None:
    turns = Turns("messages", [call("meta")], [text("Done.")])
    proxy = start_proxy(config=configuration(provider.url, servers(ours, ours={"allow": []}), ACTOR))
    proxy.wait_for_log("MCP server ours: connected")
    provider.answer(*turns.answers(streaming=False))
    ask(proxy, turns, False, {"X-User": "ada", "traceparent": "00-no-trace"})
    assert results(provider.requests[-1]) == ["{}"]


def test_a_server_that_asks_for_it_gets_the_actor_of_each_call_in_headers(
    start_proxy: StartProxy, provider: ScriptedUpstream, ours: HttpMcp
) -> None:
    mcp = servers(ours, ours={"allow": [], "send_actor_headers": True})
    more = ACTOR.removesuffix("}") + ", metadata: {team: red}}"
    proxy = start_proxy(config=configuration(provider.url, mcp, more))
    proxy.wait_for_log("MCP server ours: connected")
    turns = Turns("messages", [call("headers")], [text("Done.")])
    for user in ("ada", "bob", "ada"):
        provider.answer(*turns.answers(streaming=False))
        ask(proxy, turns, False, {"X-User": user, "X-AI-Bridge-Actor-ID": "eve"})
        [headers] = map(json.loads, results(provider.requests[-1]))
        found = {name: value for name, value in headers.items() if name.startswith("x-ai-bridge")}
        assert found == {"x-ai-bridge-actor-id": user, "x-ai-bridge-actor-metadata-team": "red"}


@MODES
def test_a_server_whose_headers_name_the_actor_is_used_by_each_in_its_own_name(
    start_proxy: StartProxy, provider: ScriptedUpstream, ours: HttpMcp, streaming: bool
) -> None:
    headers = {"X-On-Behalf-Of": "${actor}", "X-Team": "${actor.metadata.team}"}
    mcp = servers(ours, ours={"allow": [], "headers": headers, "actors": {"deny": ["eve"]}})
    more = ACTOR.removesuffix("}") + ", metadata: {team: red}}"
    proxy = start_proxy(config=configuration(provider.url, mcp, more))
    plain = Turns("messages", [text("Done.")])
    provider.answer(*plain.answers(streaming=streaming))
    ask(proxy, plain, streaming, {"X-User": "eve"})
    turns = Turns("messages", [call("headers")], [text("Done.")])
    for user in ("ada", "bob", "ada"):
        provider.answer(*turns.answers(streaming=streaming))
        ask(proxy, turns, streaming, {"X-User": user})
        [found] = map(json.loads, results(provider.requests[-1]))
        assert (found["x-on-behalf-of"], found["x-team"]) == (user, "red")
    offered = [[name for name in tool_names(request) if name != "Read"] for request in provider.requests]
    assert offered[0] == [] and offered[1] and offered[1:] == [offered[1]] * 6
