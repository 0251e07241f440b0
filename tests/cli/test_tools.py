"""`aibridge tools`: the tools of real MCP servers, as programs of the configuration."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon import cli
from aibridge_addon.config.load import load
from aibridge_addon.config.system_user import operating_system_user
from aibridge_addon.recording import database
from aibridge_addon.tools.servers import Servers
from tests.support.mcp_servers import stdio
from tests.support.scripted_mcp import ScriptedMcp, tool

Outcome = tuple[int, str, str]
READ_ONLY = {"readOnlyHint": True}


class Tools:
    """The command, with servers that are written into a configuration."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._file = folder / "aibridge.yaml"
        self._folder = folder
        self._capsys = capsys
        self.configure()

    def configure(self, mcp: str = "", **servers: dict[str, Any]) -> None:
        self._file.write_text(
            f"database: 'sqlite:///{self._folder}/rows.db'\nmcp:\n  servers: {json.dumps(servers)}\n{mcp}"
        )

    def __call__(self, *arguments: str) -> Outcome:
        code = cli.main(["tools", *arguments, "--config", str(self._file)])
        return code, *self._capsys.readouterr()


@pytest.fixture
def tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tools:
    return Tools(tmp_path, capsys)


@pytest.fixture
def server(tmp_path: Path) -> ScriptedMcp:
    return ScriptedMcp(tmp_path / "server.json", tool("add", "Adds."), tool("rm"), tool("n" * 300), tool("fail"))


def test_the_list_says_what_is_offered_and_why_the_rest_is_not(tools: Tools, server: ScriptedMcp) -> None:
    tools.configure(ours=server.entry(deny="^rm"))
    for arguments in ([], ["list"]):
        code, out, err = tools(*arguments)
        assert (code, err) == (0, "")
        assert out.splitlines()[:3] == [
            "ours: up, 2 tools offered, 2 left out",
            "  bmcp_ours_add  Adds.",
            "  bmcp_ours_fail  Does something.",
        ]
        assert "  rm  left out: deny matches it\n" in out and "left out: a name of 300 characters\n" in out


def test_a_server_that_is_away_is_named_with_its_reason_and_the_command_fails(
    tools: Tools, server: ScriptedMcp
) -> None:
    tools.configure(ours=server.entry(), dead={"command": "no-such-program", "required": True})
    code, out, err = tools()
    assert (code, err) == (1, "")
    assert "dead: away: its command was not found" in out and ", required\n" in out
    code, out, _ = tools("--server", "ours")
    assert code == 0 and "dead" not in out


def test_json_and_csv_have_all_tools(tools: Tools, server: ScriptedMcp) -> None:
    server.write(tool("add", "Adds.", annotations=READ_ONLY), tool("rm"))
    tools.configure(ours=server.entry(read_only=True))
    code, out, _ = tools("list", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["totals"] == {"servers": 1, "up": 1, "tools": 1, "left_out": 1}
    assert found["servers"] == [
        {
            "name": "ours",
            "up": True,
            "required": False,
            "tools": 1,
            "left_out": 1,
            "problem": None,
            "logged_in": None,
        }
    ]
    offered, left_out = found["rows"]
    assert offered == {
        "server": "ours",
        "tool": "add",
        "name": "bmcp_ours_add",
        "offered": True,
        "reason": None,
        "description": "Adds.",
    }
    assert (left_out["tool"], left_out["offered"]) == ("rm", False) and "read-only" in left_out["reason"]
    _, out, _ = tools("list", "--csv")
    assert [(row["tool"], row["offered"]) for row in csv.DictReader(io.StringIO(out))] == [
        ("add", "true"),
        ("rm", "false"),
    ]


@pytest.mark.parametrize("name", ["bmcp_ours_add", "ours/add", "add"])
def test_a_call_prints_the_result(tools: Tools, server: ScriptedMcp, name: str) -> None:
    tools.configure(ours=server.entry())
    code, out, err = tools("call", name, '{"say": "hi\\u001b[0m"}')
    assert (code, out) == (0, "hi\\x1b[0m\n")
    assert err.startswith("ours/add: done, ")


def test_a_call_that_fails_is_a_failure_of_the_command(tools: Tools, server: ScriptedMcp) -> None:
    tools.configure(ours=server.entry())
    code, out, err = tools("call", "fail")
    assert (code, out) == (1, "it went wrong\n") and "failed" in err
    code, out, _ = tools("call", "fail", "--json")
    found = json.loads(out)
    assert code == 1
    assert (found["is_error"], found["error"], found["error_kind"]) == (True, "it went wrong", "tool")
    assert found["result"] == [{"type": "text", "text": "it went wrong"}]


def test_arguments_may_come_from_standard_input(
    tools: Tools, server: ScriptedMcp, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.configure(ours=server.entry())
    monkeypatch.setattr("sys.stdin", io.StringIO('{"say": "from there"}'))
    assert tools("call", "add", "-")[:2] == (0, "from there\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["call", "add", "{"], 2, "not valid JSON"),
        (["call", "add", "[1]"], 2, "not a JSON object"),
        (["call", "ad"], 1, 'there is no tool ad (did you mean "add"?)'),
        (["call", "bmcp_ours_rm"], 1, "the tool rm of ours is left out: deny matches it"),
        (["call", "bmcp_dead_x"], 1, "dead is away: its command was not found"),
        (["--server", "our"], 2, 'did you mean "ours"?'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(tools: Tools, server: ScriptedMcp, arguments: list[str], code: int, said: str) -> None:
    tools.configure(ours=server.entry(deny="^rm"), dead={"command": "no-such-program"})
    found, out, err = tools(*arguments)
    assert (found, out) == (code, "") and said in err


def test_a_name_that_two_servers_have_has_to_be_whole(tools: Tools, server: ScriptedMcp) -> None:
    tools.configure(one=server.entry(), two=server.entry())
    code, _, err = tools("call", "add")
    assert code == 1 and "bmcp_one_add, bmcp_two_add" in err


def test_without_servers_it_says_so(tools: Tools) -> None:
    assert tools()[:2] == (0, "No MCP servers are configured. docs/tools.md describes how to add one.\n")
    assert tools("call", "x")[0] == 1


def test_options_may_stand_before_the_action(
    tools: Tools, server: ScriptedMcp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.configure(ours=server.entry())
    file = str(tmp_path / "aibridge.yaml")
    assert cli.main(["tools", "--config", file, "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["up"] == 1


def test_a_server_whose_settings_name_the_actor_is_used_for_the_named_one(tools: Tools) -> None:
    entry = stdio()
    tools.configure(
        ours={"command": entry.command, "args": list(entry.args), "env": {"WHO": "${actor}"}, "allow": "^environment$"}
    )
    code, out, err = tools("list", "--actor", "ada")
    assert (code, err) == (0, "") and out.startswith("ours: up, 1 tools offered")
    for option, actor in ((["--actor", "ada"], "ada"), ([], operating_system_user())):
        code, out, _ = tools("call", "ours/environment", '{"name": "WHO"}', *option)
        assert (code, out) == (0, f"{actor}\n")


# --- approve ------------------------------------------------------------------------------------------------------


def pin(tmp_path: Path) -> None:
    """Pin all tools as they are, as a running bridge does."""
    settings = load(tmp_path / "aibridge.yaml", environ={})

    async def pinned() -> None:
        servers = Servers(settings.mcp.servers, pinned=database.tool_pins(settings).pinned)
        servers.start()
        await servers.connected(60)
        await servers.close()

    database.tool_pin_store(settings).close()
    asyncio.run(pinned())


def test_a_tool_that_has_changed_is_shown_and_approved(tools: Tools, server: ScriptedMcp, tmp_path: Path) -> None:
    server.write(tool("add", "Adds."), tool("rm"))
    tools.configure(ours=server.entry(pin=True))
    assert tools()[0] == 0  # which pins nothing
    pin(tmp_path)
    assert tools("approve")[:2] == (0, "No tool has changed since it was pinned.\n")
    server.write(tool("add", "Adds \x1b[0m everything."), tool("rm", "Removes."))
    _, out, _ = tools()
    assert "add  left out: it has changed since it was pinned (aibridge tools approve)" in out
    code, out, _ = tools("approve")
    assert code == 0
    assert '  - "description": "Adds.",\n' in out and "\x1b" not in out
    assert "ours/add" in out and "ours/rm" in out and "--all" in out
    code, _, err = tools("approve", "add", "nothing")
    assert code == 1 and "there is no changed tool nothing; nothing is approved" in err
    code, out, _ = tools("approve", "bmcp_ours_add", "--json")
    found = json.loads(out)
    assert (code, found["totals"]) == (0, {"changed": 2, "approved": 1})
    assert [(row["tool"], row["approved"]) for row in found["rows"]] == [("add", True), ("rm", False)]
    assert "bmcp_ours_add" in tools()[1]
    assert "approved: 1 of 1 changed tools\n" in tools("approve", "--all")[1]
    assert "0 left out" not in tools()[1] and "left out" not in tools()[1]


def test_without_pins_there_is_nothing_to_approve(tools: Tools, server: ScriptedMcp) -> None:
    tools.configure(ours=server.entry())
    assert tools("approve")[:2] == (0, "No MCP server has pin: true.\n")
    tools.configure(ours={"command": "no-such-program", "pin": True})
    code, _, err = tools("approve")
    assert code == 1 and "ours is away" in err
