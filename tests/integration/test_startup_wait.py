"""Requests that come while MCP servers connect for the first time, after a start and after a reload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from aibridge_addon.proxy.life import Life
from tests.conftest import StartProxy
from tests.integration.exchanges import Client
from tests.integration.turns import BY_DIALECT, Asked, Turns, call, configuration, results, text, tool_names
from tests.support.in_process import InProcessProxy
from tests.support.polling import poll_until
from tests.support.scripted_mcp import ScriptedMcp, tool
from tests.support.upstream import ScriptedUpstream, unused_port
from tests.tools.conftest import WITHIN, runs

LONG = 3600
"""Seconds: no test waits that long."""


def mcp(wait: float, **servers: dict[str, Any]) -> str:
    return f"startup_wait: {wait}\nservers: {json.dumps(servers)}"


def offered(upstream: ScriptedUpstream, number: int = 0) -> set[str]:
    return set(tool_names(upstream.requests[number])) - {"Read"}


def ready(port: int) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
    return answer.status_code, answer.json()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def gated(tmp_path: Path, gate: Path) -> ScriptedMcp:
    """A server that does not answer before there is a file."""
    return ScriptedMcp(tmp_path / "gated.json", tool("late"), gate=gate)


@pytest.fixture
def plain(tmp_path: Path) -> ScriptedMcp:
    return ScriptedMcp(tmp_path / "plain.json", tool("pid"))


@BY_DIALECT
def test_the_first_request_waits_for_servers_that_connect(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    gated: ScriptedMcp,
    plain: ScriptedMcp,
    gate: Path,
    dialect: str,
) -> None:
    servers = mcp(LONG, late=gated.entry(), ours=plain.entry(), dead={"command": "no-such-program"})
    proxy = start_proxy(config=configuration(upstream.url, servers))
    turns = Turns(dialect, [text("Hello.")])
    with Client(proxy, turns.host) as first, Client(proxy, turns.host) as other:
        asked = Asked(first, turns.path, turns.request(streaming=False))
        upstream.answer(*turns.answers(streaming=False), *turns.answers(streaming=False))
        choice = {"type": "none"} if dialect == "messages" else "none"
        without = turns.request(streaming=False, tool_choice=choice)
        assert other.post(turns.path, without).status == 200  # it does not wait
        proxy.wait_for_log("MCP server ours: connected")
        proxy.wait_for_log("MCP server dead: away")
        assert len(upstream.requests) == 1
        gate.touch()
        assert asked.status() == 200
    assert [offered(upstream, number) for number in (0, 1)] == [set(), {"bmcp_late_late", "bmcp_ours_pid"}]


@pytest.mark.parametrize("wait", [0, 0.3])
def test_it_waits_no_longer_than_it_is_configured(
    start_proxy: StartProxy, upstream: ScriptedUpstream, gated: ScriptedMcp, wait: float
) -> None:
    proxy = start_proxy(config=configuration(upstream.url, mcp(wait, late=gated.entry())))
    turns = Turns("messages", [text("Hello.")])
    upstream.answer(*turns.answers(streaming=False))
    with Client(proxy, turns.host) as client:
        assert client.post(turns.path, turns.request(streaming=False)).status == 200
    assert offered(upstream) == set()


def test_a_provider_without_tools_does_not_wait(
    start_proxy: StartProxy, upstream: ScriptedUpstream, gated: ScriptedMcp
) -> None:
    config = configuration(upstream.url, mcp(LONG, late=gated.entry()), inject=", inject_tools: false")
    proxy = start_proxy(config=config)
    turns = Turns("messages", [text("Hello.")])
    upstream.answer(*turns.answers(streaming=False))
    with Client(proxy, turns.host) as client:
        assert client.post(turns.path, turns.request(streaming=False)).status == 200


# --- readiness ----------------------------------------------------------------------------------------------------


def test_readiness_waits_for_required_servers_and_names_all(
    start_proxy: StartProxy, upstream: ScriptedUpstream, gated: ScriptedMcp, gate: Path
) -> None:
    port = unused_port()
    servers = mcp(LONG, late=gated.entry(required=True), dead={"command": "no-such-program"})
    config = configuration(upstream.url, servers, more=f"metrics: {{listen: '127.0.0.1:{port}'}}")
    proxy = start_proxy(config=config)
    proxy.wait_for_log("MCP server dead: away")
    status, said = ready(port)
    assert (status, said["ready"], said["degraded"]) == (503, False, ["mcp.servers.late", "mcp.servers.dead"])
    assert said["mcp_servers"]["late"] == {"up": False, "required": True, "tools": 0, "left_out": 0}
    assert "command was not found" in said["mcp_servers"]["dead"]["problem"]
    gate.touch()
    proxy.wait_for_log("MCP server late: connected")
    poll_until(lambda: ready(port)[0] == 200, WITHIN, what="readiness")
    status, said = ready(port)
    assert (said["degraded"], said["mcp_servers"]["late"]["tools"]) == (["mcp.servers.dead"], 1)


# --- reloads ------------------------------------------------------------------------------------------------------


def life_of(proxy: InProcessProxy) -> Life:
    assert proxy._master is not None
    life = proxy._master.addons.get(Life.name)
    assert isinstance(life, Life)
    return life


def reload(proxy: InProcessProxy) -> None:
    life = life_of(proxy)
    before = life.current
    assert proxy._loop is not None
    proxy._loop.call_soon_threadsafe(life.reload)
    poll_until(lambda: life.current is not before, WITHIN, what="the next bridge")


def written(upstream: ScriptedUpstream, wait: float, **servers: dict[str, Any]) -> str:
    return configuration(upstream.url, mcp(wait, **servers), more="metrics: {listen: null}")


def pid_by_call(proxy: InProcessProxy, upstream: ScriptedUpstream) -> int:
    """Let the model call `pid`, and return the process that has answered."""
    turns = Turns("messages", [call("pid")], [text("Done.")])
    upstream.answer(*turns.answers(streaming=False))
    with Client(proxy, turns.host) as client:
        turns.check(client.post(turns.path, turns.request(streaming=False)).body, streaming=False)
    (result,) = results(upstream.requests[-1])
    return int(result)


def test_after_a_reload_the_old_connections_serve_until_the_new_ones_are_up(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, plain: ScriptedMcp, gate: Path
) -> None:
    proxy = start_proxy(config=written(upstream, LONG, ours=plain.entry()))
    assert isinstance(proxy, InProcessProxy)
    file = proxy.folder / "aibridge.yaml"
    first = pid_by_call(proxy, upstream)
    gated = ScriptedMcp(tmp_path / "next.json", tool("pid"), tool("new"), gate=gate)
    for _ in range(2):  # also where another reload comes meanwhile
        file.write_text(written(upstream, LONG, ours=gated.entry(), dead={"command": "no-such-program"}))
        reload(proxy)
        assert pid_by_call(proxy, upstream) == first
        assert offered(upstream, -1) == {"bmcp_ours_pid"}
    gate.touch()
    proxy.wait_for_log(r"MCP server ours: connected, 2 tools")
    poll_until(lambda: not runs(first), WITHIN, what="the end of the old program")
    poll_until(lambda: len(life_of(proxy).bridges) == 1, WITHIN, what="the end of the old bridges")
    second = pid_by_call(proxy, upstream)
    assert second != first and runs(second)
    assert offered(upstream, -1) == {"bmcp_ours_pid", "bmcp_ours_new"}


def test_what_a_reload_removes_or_denies_is_not_offered_any_more(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, plain: ScriptedMcp, gate: Path
) -> None:
    plain.write(tool("pid"), tool("other"))
    proxy = start_proxy(config=written(upstream, LONG, ours=plain.entry(), gone=plain.entry()))
    assert isinstance(proxy, InProcessProxy)
    pid_by_call(proxy, upstream)
    assert len(offered(upstream, -1)) == 4
    gated = ScriptedMcp(tmp_path / "next.json", tool("pid"), gate=gate)
    (proxy.folder / "aibridge.yaml").write_text(written(upstream, LONG, ours=gated.entry(deny="other")))
    reload(proxy)
    pid_by_call(proxy, upstream)
    assert offered(upstream, -1) == {"bmcp_ours_pid"}


def test_a_stop_does_not_wait_for_new_connections(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, plain: ScriptedMcp, gate: Path
) -> None:
    proxy = start_proxy(config=written(upstream, LONG, ours=plain.entry()))
    assert isinstance(proxy, InProcessProxy)
    first = pid_by_call(proxy, upstream)
    gated = ScriptedMcp(tmp_path / "next.json", tool("pid"), gate=gate)
    (proxy.folder / "aibridge.yaml").write_text(written(upstream, LONG, ours=gated.entry()))
    reload(proxy)
    proxy.close()
    assert not runs(first)
