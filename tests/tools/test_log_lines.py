"""What an MCP server writes cannot begin a line of the log or control a terminal."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from aibridge_addon.config.schema import Mcp, StdioServer
from aibridge_addon.dialects.turns import Call
from aibridge_addon.telemetry.log.formatters import TextFormatter
from aibridge_addon.tools.calls import invoke
from tests.tools.conftest import WITHIN, Log, StartServers

ATTACK = "odd\r\n[00:00:00.000] all is well \x1b[2J\x9b31m\u2028end\ttab"
SERVER = f"""
import json, sys

ATTACK = {ATTACK!r}
sys.stderr.write(ATTACK + "\\n")
sys.stderr.flush()
for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    answer = {{"jsonrpc": "2.0", "id": request["id"]}}
    method = request["method"]
    if sys.argv[1] == "refuses":
        answer["error"] = {{"code": -32603, "message": ATTACK}}
    elif method == "initialize":
        version = request["params"]["protocolVersion"]
        server = {{"name": ATTACK, "version": "1"}}
        answer["result"] = {{"protocolVersion": version, "capabilities": {{"tools": {{}}}}, "serverInfo": server}}
    elif method == "tools/list":
        tools = [{{"name": name, "inputSchema": {{"type": "object"}}}} for name in (ATTACK, ATTACK, ATTACK * 9)]
        answer["result"] = {{"tools": tools}}
    elif method == "tools/call":
        answer["result"] = {{"content": [{{"type": "text", "text": ATTACK}}], "isError": True}}
    else:
        answer["error"] = {{"code": -32601, "message": ATTACK}}
    print(json.dumps(answer), flush=True)
"""


def server(folder: Path, way: str) -> StdioServer:
    path = folder / "server.py"
    path.write_text(SERVER)
    return StdioServer(command=sys.executable, args=(str(path), way))


def check(lines: list[str]) -> None:
    assert lines
    for line in lines:
        assert line.isprintable(), repr(line)


async def test_an_error_of_initialize_and_stderr_are_one_printable_line(
    start: StartServers, log: Log, tmp_path: Path
) -> None:
    stage = start({"ours": server(tmp_path, "refuses")})
    await log.line("away")
    await log.line("stderr: [00:00:00.000] all is well")
    await stage.failures(2)
    check([record.getMessage() for record in log.records])
    assert log.said("all is well")


async def test_the_names_of_tools_are_one_printable_line(start: StartServers, log: Log, tmp_path: Path) -> None:
    stage = start({"ours": server(tmp_path, "serves")})
    catalog = await stage.until(lambda catalog: bool(catalog.tools))
    [tool] = catalog.tools
    assert tool.original_name == ATTACK
    await invoke(stage.servers, tool, Call("call_1", tool.name, {}, {}), Mcp(tool_timeout=WITHIN))
    assert log.said("left out") and log.said("failed")
    check([record.getMessage() for record in log.records])


@pytest.mark.parametrize("name", ["mcp.client.session", "mcp", "httpx2"])
def test_a_line_of_the_librarys_is_one_line_as_well(name: str) -> None:
    record = logging.LogRecord(name, logging.WARNING, "x.py", 1, "bad: %s", (ATTACK,), None)
    text = TextFormatter(logging.Formatter("%(message)s"), width=lambda: 80, colour=False).format(record)
    assert text.isprintable() and "all is well" in text
