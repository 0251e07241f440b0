"""What one server's own keys limit: time, size, number of calls, and which tools are offered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aibridge_addon.config.schema import Mcp, StdioServer
from aibridge_addon.dialects.turns import Call, Invocation, Text
from aibridge_addon.tools.calls import invoke
from aibridge_addon.tools.catalog import Tool
from tests.support.scripted_mcp import ScriptedMcp, tool
from tests.tools.conftest import WITHIN, Stage, StartServers


class Server:
    """One server with these keys, and calls of its tools."""

    def __init__(self, start: StartServers, script: ScriptedMcp, **keys: Any) -> None:
        self.settings = Mcp(servers={"ours": StdioServer(**script.entry(**keys))}, tool_timeout=WITHIN)
        self.stage: Stage = start(self.settings.servers)

    async def call(self, name: str, /, **arguments: Any) -> Invocation:
        made = Call("id", name, arguments, {})
        return await invoke(self.stage.servers, await self.stage.tool(f"bmcp_ours_{name}"), made, self.settings)


@pytest.fixture
def script(tmp_path: Path) -> ScriptedMcp:
    names = ("echo", "sleep", "fail", "folder")
    return ScriptedMcp(tmp_path / "server.json", *(tool(name) for name in names))


async def test_a_call_may_take_the_time_of_its_server(start: StartServers, script: ScriptedMcp) -> None:
    done = await Server(start, script, tool_timeout=0.2).call("sleep", seconds=WITHIN)
    assert (done.error, done.error_kind) == ("MCP server ours did not answer within 0.2 s", "timeout")


async def test_a_result_may_have_the_size_of_its_server(start: StartServers, script: ScriptedMcp) -> None:
    done = await Server(start, script, max_result_bytes=3).call("echo", say="abcdef")
    first, note = done.result.parts
    assert first == Text("abc") and isinstance(note, Text) and "3 of 6 bytes were cut" in note.text


async def test_a_program_runs_in_its_folder(start: StartServers, script: ScriptedMcp, tmp_path: Path) -> None:
    done = await Server(start, script, cwd=tmp_path).call("folder")
    assert done.result.parts == (Text(str(tmp_path)),)


async def test_a_call_beyond_the_rate_is_not_made(start: StartServers, script: ScriptedMcp) -> None:
    server = Server(start, script, rate="2/h")
    done = [await server.call("echo") for _ in range(3)]
    assert [each.error_kind for each in done] == [None, None, "rate"]
    assert "2 times per hour" in str(done[2].error)


async def test_a_rate_outlives_a_reload(start: StartServers, script: ScriptedMcp) -> None:
    first = Server(start, script, rate="1/h")
    assert (await first.call("echo")).error is None
    second = Server(start, script, rate="1/h")
    second.stage.servers.replace(first.stage.servers)
    assert (await second.call("echo")).error_kind == "rate"
    other = Server(start, script, rate="2/h")
    other.stage.servers.replace(first.stage.servers)
    assert (await other.call("echo")).error is None


async def test_only_tools_that_are_annotated_so_are_read_only(start: StartServers, script: ScriptedMcp) -> None:
    hints: list[Any] = [{"readOnlyHint": True}, {"readOnlyHint": False}, {"title": "x"}, None]
    script.write(*(tool(f"t{n}", annotations=hint) for n, hint in enumerate(hints)), tool("t4"))
    server = Server(start, script, read_only=True)
    await server.stage.tool("bmcp_ours_t0")
    assert server.stage.catalog.names == {"bmcp_ours_t0"}
    assert {each.tool for each in server.stage.servers.left_out("ours")} == {"t1", "t2", "t3", "t4"}
    [state] = server.stage.servers.states()
    assert (state.tools, state.left_out) == (1, 4)


async def test_what_a_configuration_excludes_by_name_is_not_reported_as_left_out(
    start: StartServers, script: ScriptedMcp
) -> None:
    server = Server(start, script, allow="echo|sleep", deny="sleep")
    await server.stage.tool("bmcp_ours_echo")
    [state] = server.stage.servers.states()
    assert (state.tools, state.left_out) == (1, 0)
    assert [each.tool for each in server.stage.servers.left_out("ours")] == ["sleep", "fail", "folder"]


async def test_errors_have_a_kind(start: StartServers, script: ScriptedMcp) -> None:
    server = Server(start, script)
    assert (await server.call("fail")).error_kind == "tool"
    gone = Tool("bmcp_ours_gone", "gone", "ours", None, "", {})
    call = Call("id", gone.name, {}, {})
    assert (await invoke(server.stage.servers, gone, call, server.settings)).error_kind == "request"
    assert (await invoke(server.stage.servers, None, call, server.settings)).error_kind == "request"
    server.stage.servers.kill()
    await server.stage.until(lambda catalog: not catalog.tools)
    assert (await invoke(server.stage.servers, gone, call, server.settings)).error_kind == "connection"
