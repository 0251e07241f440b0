"""Servers whose headers or environment name the actor: one connection for each, bounded, and none for others."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from pydantic import SecretStr

from aibridge_addon.config.actor_templates import ActorReference, ActorTemplate
from aibridge_addon.config.schema import HttpServer, StdioServer
from aibridge_addon.tools import CallError
from aibridge_addon.tools.caller import Caller
from tests.support.mcp_servers import HttpMcp, ToolGate, stdio
from tests.support.odd_mcp import OddMcp, Reply, Request
from tests.tools.conftest import WITHIN, Stage, StartServers

ACTOR = ActorTemplate(["user ", ActorReference("actor"), "/", ActorReference("actor.metadata.team")])


def caller(name: str) -> Caller:
    return Caller(name, "i", {"team": "red"})


def over_http(server: HttpMcp) -> HttpServer:
    return HttpServer(url=SecretStr(server.url), headers={"X-Who": ACTOR})


def program() -> StdioServer:
    return stdio().model_copy(update={"env": {"WHO": ACTOR}})


async def call(stage: Stage, name: str, /, actor: str, **arguments: Any) -> str:
    await stage.servers.prepare(caller(actor), (), WITHIN)
    result = await stage.servers.call(await stage.tool(name), arguments, WITHIN, caller=caller(actor))
    [block] = result["content"]
    return str(block["text"])


async def test_each_actor_has_a_connection_whose_headers_name_it(start: StartServers, ours: HttpMcp) -> None:
    stage = start({"ours": over_http(ours)})
    assert stage.catalog.tools == ()
    for actor in ("ada", "bob", "ada", "Zoë", "a\r\nX-Evil: 1", " ada", "ada "):
        sent = json.loads(await call(stage, "bmcp_ours_headers", actor))
        expected = f"user {actor}/red".replace("\r", "\ufffd").replace("\n", "\ufffd")
        assert sent["x-who"].encode("latin-1").decode() == expected
        assert "x-evil" not in sent


async def test_each_actor_has_a_program_whose_environment_names_it(start: StartServers) -> None:
    stage = start({"ours": program()})
    pids = [await call(stage, "bmcp_ours_pid", actor) for actor in ("ada", "bob", "ada")]
    assert pids[0] == pids[2] != pids[1]
    assert await call(stage, "bmcp_ours_environment", "bob", name="WHO") == "user bob/red"


async def test_calls_of_many_actors_at_once_use_their_own_connections(start: StartServers, ours: HttpMcp) -> None:
    stage = start({"ours": over_http(ours)})
    actors = [f"actor-{n}" for n in range(6)] * 3
    sent = await asyncio.gather(*(call(stage, "bmcp_ours_headers", actor) for actor in actors))
    assert [json.loads(each)["x-who"] for each in sent] == [f"user {actor}/red" for actor in actors]


async def test_the_tools_are_those_of_the_first_actor_and_stay_when_it_is_idle(
    start: StartServers, ours: HttpMcp
) -> None:
    seconds = itertools.count(0, 1000)
    stage = start({"ours": over_http(ours)}, clock=lambda: next(seconds))
    await call(stage, "bmcp_ours_echo", "ada", text="hi")
    before = stage.catalog
    [server] = stage.servers._servers.values()
    server.close_idle()  # type: ignore[union-attr]
    assert stage.catalog is before
    assert await call(stage, "bmcp_ours_echo", "bob", text="again") == "again"
    assert stage.catalog is before


async def test_the_longest_idle_connection_makes_way_and_busy_ones_do_not(start: StartServers, ours: HttpMcp) -> None:
    seconds = itertools.count()
    stage = start({"ours": program()}, actor_connections=2, clock=lambda: float(next(seconds)))
    ada = await call(stage, "bmcp_ours_pid", "ada")
    bob = await call(stage, "bmcp_ours_pid", "bob")
    assert await call(stage, "bmcp_ours_pid", "ada") == ada
    await call(stage, "bmcp_ours_pid", "eve")  # bob's is closed
    assert await call(stage, "bmcp_ours_pid", "ada") == ada
    assert await call(stage, "bmcp_ours_pid", "bob") != bob
    with ToolGate() as gate:
        slow = [asyncio.create_task(call(stage, "bmcp_ours_slow", each, port=gate.port)) for each in ("ada", "bob")]
        for _ in slow:
            await asyncio.to_thread(gate.wait_reached)
        with pytest.raises(CallError, match="busy: 2 actors use it now"):
            await call(stage, "bmcp_ours_pid", "eve")
        gate.open()
        assert await asyncio.gather(*slow) == ["at last", "at last"]
    assert (await call(stage, "bmcp_ours_pid", "eve")).isdigit()


async def test_a_call_for_no_actor_is_an_error(start: StartServers, ours: HttpMcp) -> None:
    stage = start({"ours": over_http(ours)})
    await stage.servers.prepare(caller("ada"), (), WITHIN)
    tool = await stage.tool("bmcp_ours_echo")
    with pytest.raises(CallError, match="in the name of an actor"):
        await stage.servers.call(tool, {"text": "hi"}, WITHIN)


async def test_an_actor_that_may_not_use_a_server_makes_no_connection(start: StartServers, ours: HttpMcp) -> None:
    stage = start({"ours": over_http(ours)})
    await stage.servers.prepare(caller("ada"), {"ours"}, WITHIN)
    assert stage.catalog.tools == ()
    [server] = stage.servers._servers.values()
    assert not server._actors  # type: ignore[union-attr]


async def test_a_server_that_is_away_is_tried_again_by_later_calls(start: StartServers) -> None:
    with HttpMcp() as server:
        stage = start({"ours": over_http(server)})
        await call(stage, "bmcp_ours_echo", "ada", text="hi")
        server.kill()
        tool = stage.catalog.get("bmcp_ours_echo")
        assert tool is not None
        with pytest.raises(CallError, match="MCP server ours is not connected: it cannot be reached"):
            await stage.servers.call(tool, {"text": "hi"}, WITHIN, caller=caller("bob"))
        server.start()
        assert await call(stage, "bmcp_ours_echo", "bob", text="back") == "back"


async def test_a_refused_credential_is_its_actors_alone(start: StartServers) -> None:
    def gate(request: Request) -> Reply:
        if request["headers"]["x-who"].startswith("user mallory"):
            return Reply.json(b'{"error": "no such user"}', 401)
        return odd.well_behaved(request)

    gated = dict.fromkeys(("initialize", "server/discover", "tools/list", "tools/call"), gate)
    seconds = [0.0]
    async with OddMcp(gated) as odd:
        entry = odd.settings().model_copy(update={"headers": {"X-Who": ACTOR}})
        stage = start({"odd": entry}, clock=lambda: seconds[0], backoff=lambda _: 60.0)
        [server] = stage.servers._servers.values()
        await stage.servers.prepare(caller("mallory"), (), WITHIN)
        assert stage.catalog.tools == () and server.is_up
        await stage.servers.prepare(caller("ada"), (), WITHIN)
        tool = stage.catalog.get("bmcp_odd_add")
        assert tool is not None, "others have no pause"
        seconds[0] = 10_000.0
        server.close_idle()  # type: ignore[union-attr]
        with pytest.raises(CallError, match="HTTP 401"):
            await stage.servers.call(tool, {"a": 1}, WITHIN, caller=caller("mallory"))
        assert server.is_up
        await stage.servers.call(tool, {"a": 1}, WITHIN, caller=caller("ada"))


async def test_a_server_that_was_away_counts_as_up_when_it_may_be_tried_again(start: StartServers) -> None:
    seconds = [0.0]
    with HttpMcp() as server:
        stage = start({"ours": over_http(server)}, clock=lambda: seconds[0], backoff=lambda _: 60.0)
        server.kill()
        await stage.servers.prepare(caller("ada"), (), WITHIN)
        [connections] = stage.servers._servers.values()
        assert connections.problem == "it cannot be reached"
        for second, is_up in ((0, False), (59, False), (61, True)):  # else no balancer would let a request find out
            seconds[0] = second
            assert connections.is_up is is_up
        server.start()
        assert await call(stage, "bmcp_ours_echo", "ada", text="back") == "back"
        assert connections.problem == ""
