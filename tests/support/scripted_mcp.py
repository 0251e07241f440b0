"""An MCP server over stdio whose tools and start are in a file, which it reads again for each listing.

    server = ScriptedMcp(tmp_path / "server.json")
    server.write(tools=[tool("add")])              # and from then on, also while it runs
    settings = {"ours": server.settings()}

It starts in a tenth of the time of a server of the MCP library. Run as a program, this file is the server.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def tool(name: str, description: str = "Does something.", **members: Any) -> dict[str, Any]:
    """A tool as a server lists it. Its result is its name, or the text of its argument `say`."""
    return {"name": name, "description": description, "inputSchema": {"type": "object"}} | members


class ScriptedMcp:
    def __init__(self, file: Path, *tools: dict[str, Any], gate: Path | None = None) -> None:
        """`gate`: it answers nothing before there is this file."""
        self._file = file
        self._gate = gate
        self.write(*tools)

    def write(self, *tools: dict[str, Any]) -> None:
        script = json.dumps({"tools": tools, "gate": str(self._gate or "")})
        ready = self._file.with_suffix(".new")
        ready.write_text(script)
        ready.replace(self._file)

    def entry(self, **more: Any) -> dict[str, Any]:
        """Its entry in a configuration."""
        return {"command": sys.executable, "args": ["-I", __file__, str(self._file)]} | more


def _serve(file: Path) -> None:
    while (gate := json.loads(file.read_text())["gate"]) and not Path(gate).exists():
        time.sleep(0.01)
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            answer = {"jsonrpc": "2.0", "id": message["id"], **_answer(file, message)}
            print(json.dumps(answer), flush=True)


def _answer(file: Path, message: dict[str, Any]) -> dict[str, Any]:
    match message["method"]:
        case "initialize":
            info = {"name": "scripted", "version": "1"}
            return {
                "result": {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {"listChanged": True}},
                    "serverInfo": info,
                }
            }
        case "tools/list":
            return {"result": {"tools": json.loads(file.read_text())["tools"]}}
        case "tools/call":
            return {"result": _called(message["params"])}
        case "ping":
            return {"result": {}}
    return {"error": {"code": -32601, "message": "there is no such method"}}


def _called(params: dict[str, Any]) -> dict[str, Any]:
    arguments = params.get("arguments") or {}
    match params["name"]:
        case "pid":
            text = str(os.getpid())
        case "folder":
            text = os.getcwd()
        case "variable":
            text = os.environ.get(arguments["name"], "(not set)")
        case "sleep":
            time.sleep(arguments["seconds"])
            text = "slept"
        case "fail":
            return {"content": [{"type": "text", "text": "it went wrong"}], "isError": True}
        case name:
            text = arguments.get("say", name)
    return {"content": [{"type": "text", "text": text}]}


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
