"""Connections to real servers over HTTP: they come, go, change and hang, and nothing else is touched by it."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from aibridge_addon.config.schema import HttpServer
from aibridge_addon.tools import CallError
from aibridge_addon.tools.servers import Servers, backoff
from tests.support.mcp_servers import LONG_NAME, ODD_NAME, HttpMcp, ToolGate, stdio
from tests.tools.conftest import WITHIN, Log, StartServers

KINDS = [(), ("--legacy",), ("--json",), ("--legacy", "--json"), ("--stateless",), ("--legacy", "--stateless")]
UNREADABLE = "[The tool has run, but its answer cannot be read: larger than 16777216 bytes]"
NOTIFYING = [(), ("--legacy",)]


@asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[HttpServer]:
    """A server that answers every request with the same bytes, or not at all."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answer and await reader.readline():
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield HttpServer(
            url=SecretStr(f"http://127.0.0.1:{port}/mcp?api_key=query-secret"),
            headers={"Authorization": SecretStr("Bearer header-secret")},
        )
    finally:
        server.close()


@pytest.mark.parametrize("options", KINDS, ids=" ".join)
async def test_tools_are_offered_and_called_in_every_flavour_of_the_protocol(
    start: StartServers, options: tuple[str, ...]
) -> None:
    with HttpMcp(*options) as server:
        stage = start({"ours": server.settings()})
        assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"
        tool = await stage.tool("bmcp_ours_add")
        assert (tool.original_name, tool.server_name, tool.server_url) == ("add", "ours", server.url)
        assert tool.description == "Add two numbers."


async def test_a_schema_arrives_whole(start: StartServers, ours: HttpMcp) -> None:
    schema = (await start({"ours": ours.settings()}).tool("bmcp_ours_area")).input_schema
    assert schema["properties"]["shape"]["oneOf"] == [{"$ref": "#/$defs/Circle"}, {"$ref": "#/$defs/Square"}]
    assert schema["$defs"]["Circle"]["properties"]["kind"]["const"] == "circle"


async def test_tools_with_odd_and_long_names_can_be_called(start: StartServers, ours: HttpMcp) -> None:
    stage = start({"ours": ours.settings()})
    catalog = await stage.until(lambda catalog: bool(catalog.tools))
    names = {tool.original_name: tool.name for tool in catalog.tools}
    assert await stage.call(names[ODD_NAME], text="odd") == "odd"
    assert await stage.call(names[LONG_NAME], text="long") == "long"


async def test_configured_headers_are_sent(start: StartServers, ours: HttpMcp) -> None:
    stage = start({"ours": ours.settings(headers={"X-Token": "t0ken"}, query="?key=k")})
    assert '"x-token": "t0ken"' in await stage.call("bmcp_ours_headers")


async def test_allow_and_deny_of_each_server_are_kept(start: StartServers, ours: HttpMcp, log: Log) -> None:
    some = ours.settings(allow=("^a", "echo"), deny=("area",))
    stage = start({"some": some, "none": ours.settings(deny=(".",)), "one": ours.settings(allow=("^add$",))})
    await stage.until(lambda catalog: len(catalog.tools) == 4)
    assert stage.catalog.names == {"bmcp_some_add", "bmcp_some_audio", "bmcp_some_echo", "bmcp_one_add"}
    assert log.said("some") == ["MCP server some: connected, 3 tools"]


async def test_a_dead_server_is_logged_once_and_retried_and_others_work(
    start: StartServers, ours: HttpMcp, log: Log
) -> None:
    dead = HttpServer(url=SecretStr("http://127.0.0.1:9/mcp?api_key=query-secret"))
    stage = start({"dead": dead, "ours": ours.settings()})
    assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"
    await stage.failures(3)
    assert log.said("dead") == ["MCP server dead: away: it cannot be reached; trying again"]
    assert stage.delays[:3] == [1, 2, 3]


async def test_a_server_that_comes_up_later_is_found(start: StartServers) -> None:
    with HttpMcp() as server:
        server.kill()
        stage = start({"ours": server.settings()})
        await stage.failures(2)
        await asyncio.to_thread(server.start)
        assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"


@pytest.mark.parametrize("options", NOTIFYING, ids=" ".join)
async def test_tools_of_a_killed_server_stay_and_can_be_called_when_it_is_back(
    start: StartServers, options: tuple[str, ...], ours: HttpMcp, log: Log
) -> None:
    with HttpMcp(*options) as server:
        stage = start({"ours": server.settings(), "other": ours.settings(allow=("add",))})
        tool = await stage.tool("bmcp_ours_add")
        await stage.tool("bmcp_other_add")
        catalog = stage.catalog
        server.kill()
        await stage.failures(2)
        with pytest.raises(CallError, match=r"MCP server ours (is not connected|was lost)"):
            await stage.servers.call(tool, {"a": 1, "b": 2}, WITHIN)
        assert stage.catalog is catalog
        await asyncio.to_thread(server.start)
        await log.lines("ours: connected", 2, logging.INFO)
        assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"
        assert stage.catalog is catalog
    assert len(log.said("ours: away")) == 1
    assert len(log.said("ours: connected")) == 2


async def test_a_call_into_a_session_that_has_expired_opens_another_one(start: StartServers) -> None:
    """Without a notification stream, nothing reports that the server was restarted."""
    with HttpMcp("--legacy", "--no-stream") as server:
        stage = start({"ours": server.settings()})
        tool = await stage.tool("bmcp_ours_add")
        server.kill()
        await asyncio.to_thread(server.start)
        result = await stage.servers.call(tool, {"a": 1, "b": 2}, WITHIN)
        assert result["structuredContent"] == {"result": 3}


async def test_a_call_to_a_server_that_has_gone_unnoticed_fails_and_is_noticed(start: StartServers) -> None:
    with HttpMcp("--legacy", "--no-stream") as server:
        stage = start({"ours": server.settings()})
        tool = await stage.tool("bmcp_ours_add")
        server.kill()
        with pytest.raises(CallError, match="MCP server ours: it cannot be reached"):
            await stage.servers.call(tool, {"a": 1, "b": 2}, WITHIN)
        await stage.failures(1)


async def test_tools_of_a_server_that_stays_away_are_withdrawn(start: StartServers, ours: HttpMcp) -> None:
    with HttpMcp() as server:
        stage = start({"ours": server.settings(), "other": ours.settings(allow=("add",))}, withdrawn_after=0.01)
        await stage.tool("bmcp_ours_add")
        await stage.tool("bmcp_other_add")
        server.kill()
        await stage.until(lambda catalog: catalog.names == {"bmcp_other_add"})


@pytest.mark.parametrize("options", NOTIFYING, ids=" ".join)
async def test_calls_in_flight_fail_when_their_server_dies(start: StartServers, options: tuple[str, ...]) -> None:
    with HttpMcp(*options) as server, ToolGate() as gate:
        stage = start({"ours": server.settings()})
        call = asyncio.create_task(stage.call("bmcp_ours_slow", port=gate.port))
        await asyncio.to_thread(gate.wait_reached)
        server.kill()
        with pytest.raises(CallError, match="MCP server ours"):
            await call


@pytest.mark.parametrize("options", NOTIFYING, ids=" ".join)
async def test_a_changed_list_is_fetched_at_once(start: StartServers, options: tuple[str, ...], log: Log) -> None:
    with HttpMcp(*options) as server:
        stage = start({"ours": server.settings()}, refreshed_every=math.inf)
        before = await stage.until(lambda catalog: bool(catalog.tools))
        await stage.call("bmcp_ours_grow")
        assert await stage.call("bmcp_ours_grown") == "grown"
        assert "bmcp_ours_grown" not in before.names
    assert len(log.said("ours: connected")) == 2


async def test_a_server_that_tells_nothing_is_asked_again_from_time_to_time(start: StartServers) -> None:
    with HttpMcp("--legacy", "--no-stream") as server:
        stage = start({"ours": server.settings()}, refreshed_every=0.05)
        await stage.call("bmcp_ours_grow")
        assert await stage.call("bmcp_ours_grown") == "grown"


async def test_a_tool_that_its_server_no_longer_offers_is_not_called(start: StartServers) -> None:
    with HttpMcp("--legacy", "--no-stream") as server:
        stage = start({"ours": server.settings()}, refreshed_every=0.05)
        await stage.call("bmcp_ours_grow")
        grown = await stage.tool("bmcp_ours_grown")
        server.kill()
        await asyncio.to_thread(server.start)
        await stage.until(lambda catalog: "bmcp_ours_grown" not in catalog.names)
        with pytest.raises(CallError, match="does not offer the tool 'grown' any more"):
            await stage.servers.call(grown, {}, WITHIN)


@pytest.mark.parametrize("options", [("--paged",), ("--legacy", "--paged")], ids=" ".join)
async def test_all_pages_of_a_list_are_read(start: StartServers, options: tuple[str, ...]) -> None:
    with HttpMcp(*options) as server:
        stage = start({"p": server.settings()})
        catalog = await stage.until(lambda catalog: bool(catalog.tools))
        assert [tool.original_name for tool in catalog.tools] == [f"tool_{p}_{n}" for p in range(5) for n in range(3)]


async def test_a_result_that_breaks_its_own_schema_is_handed_on(start: StartServers) -> None:
    with HttpMcp("--paged") as server:
        assert await start({"p": server.settings()}).call("bmcp_p_tool_4_2") == "tool_4_2"


async def test_a_list_without_end_is_read_as_far_as_it_goes(start: StartServers, log: Log) -> None:
    with HttpMcp("--paged", "--endless") as server:
        stage = start({"p": server.settings()}, refreshed_every=0.1)
        await stage.until(lambda catalog: len(catalog.tools) == 300)
        await stage.call("bmcp_p_tool_0_0")
    assert log.said("more than 100 pages")


async def test_a_server_that_never_answers_is_given_up_and_holds_nobody_up(
    start: StartServers, ours: HttpMcp, log: Log
) -> None:
    async with listening(b"") as hung:
        patient = start({"hung": hung, "ours": ours.settings()})
        await patient.call("bmcp_ours_add", a=1, b=2)
        await asyncio.wait_for(patient.servers.close(), WITHIN)
        assert not log.said("hung")
        await start({"hung": hung}, connected_within=0.1).failures(2)
        assert log.said("hung") == ["MCP server hung: away: it did not answer in time; trying again"]


async def test_what_is_wrong_is_logged_without_secrets(
    start: StartServers, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"bad token header-secret, query-secret"}}'
    head = b"HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    caplog.set_level(logging.DEBUG)  # of every logger
    async with listening(head + body) as server:
        await start({"ours": server}).failures(2)
    expected = "MCP server ours: away: bad token [redacted], [redacted] (HTTP 401); trying again"
    assert log.said("ours") == [expected]
    assert not log.said("secret", logging.DEBUG)
    assert "secret" not in caplog.text


@pytest.mark.parametrize("options", [*NOTIFYING, None], ids=str)
async def test_a_cancelled_call_is_cancelled_at_the_server(
    start: StartServers, options: tuple[str, ...] | None
) -> None:
    with HttpMcp(*options or ()) as server, ToolGate() as gate:
        stage = start({"ours": stdio() if options is None else server.settings()})
        call = asyncio.create_task(stage.call("bmcp_ours_slow", port=gate.port))
        await asyncio.to_thread(gate.wait_reached)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(gate.wait_abandoned)
        assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"


async def test_a_server_runs_only_so_many_calls_at_the_same_time(start: StartServers, ours: HttpMcp) -> None:
    with ToolGate() as gate:
        stage = start({"ours": ours.settings(max_concurrent=1)})
        first = asyncio.create_task(stage.call("bmcp_ours_slow", port=gate.port))
        await asyncio.to_thread(gate.wait_reached)
        add = await stage.tool("bmcp_ours_add")
        with pytest.raises(CallError, match="MCP server ours was busy with other calls for 0"):
            await stage.servers.call(add, {"a": 1, "b": 2}, 0.01)
        second = asyncio.create_task(stage.call("bmcp_ours_add", a=1, b=2))
        gate.open()
        await first
        assert await second == "3"


@pytest.mark.parametrize("options", [*NOTIFYING, None], ids=str)
async def test_a_call_that_takes_too_long_is_given_up_at_both_ends(
    start: StartServers, options: tuple[str, ...] | None
) -> None:
    with HttpMcp(*options or ()) as server, ToolGate() as gate:
        stage = start({"ours": stdio() if options is None else server.settings()})
        tool = await stage.tool("bmcp_ours_slow")
        with pytest.raises(CallError, match=r"MCP server ours did not answer within 1 s"):
            await stage.servers.call(tool, {"port": gate.port}, 1)
        await asyncio.to_thread(gate.wait_reached)
        await asyncio.to_thread(gate.wait_abandoned)
        assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"


@pytest.mark.parametrize("options", [(), ("--json",)], ids=" ".join)
async def test_an_answer_beyond_all_bounds_costs_nothing_but_itself(
    start: StartServers, options: tuple[str, ...], log: Log
) -> None:
    with HttpMcp(*options) as server:
        stage = start({"ours": server.settings()})
        assert await stage.call("bmcp_ours_big", n=17 << 20) == UNREADABLE
        assert not log.said("away")
        assert await stage.call("bmcp_ours_add", a=1, b=2) == "3"


async def test_close_without_start_is_nothing() -> None:
    await Servers({"ours": stdio()}).close()


def test_attempts_come_ever_more_seldom_but_at_least_once_a_minute() -> None:
    delays = [backoff(failures) for failures in range(1, 12)]
    assert all(1 <= delay <= 60 for delay in delays)
    assert delays[:6] == sorted(delays[:6])
    assert delays[-1] == 60
    assert len({backoff(3) for _ in range(10)}) > 1
