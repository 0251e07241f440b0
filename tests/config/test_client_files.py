"""Files in which other MCP clients name their servers, in every client's words."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from aibridge_addon.config.load import load
from aibridge_addon.config.schema import HttpServer, StdioServer

Server = HttpServer | StdioServer
SECRET = "hunter2-never-print-me"
URL = "http://h/mcp"


class Read:
    """Reads a file's servers, and what is warned of."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.folder = folder
        self._caplog = caplog

    def __call__(self, content: Any, name: str = "mcp.json", **environ: str) -> dict[str, Server]:
        text = content if isinstance(content, str) else json.dumps(content)
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)
        config = self.folder / "aibridge.yaml"
        config.write_text(f"mcp: {{config_file: {name}}}")
        self._caplog.clear()
        with self._caplog.at_level(logging.WARNING):
            return dict(load(config, environ=environ).mcp.servers)

    def one(self, entry: Any, **environ: str) -> Server:
        """Read one entry."""
        [server] = self({"mcpServers": {"a": entry}}, **environ).values()
        return server

    @property
    def warnings(self) -> list[str]:
        return [record.getMessage().replace(str(self.folder), "") for record in self._caplog.records]


@pytest.fixture
def read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Read:
    return Read(tmp_path, caplog)


def offers(server: Server, *tools: str) -> list[str]:
    """Return which of these tools a server offers."""
    return [
        tool
        for tool in tools
        if not any(deny.search(tool) for deny in server.deny)
        and (not server.allow or any(allow.search(tool) for allow in server.allow))
    ]


ENTRY = {"command": "run"}


@pytest.mark.parametrize(
    "content",
    [
        {"mcpServers": {"a": ENTRY}},
        {"servers": {"a": ENTRY}, "inputs": [{"id": "token"}]},
        {"mcp": {"servers": {"a": ENTRY}}},
        {"mcp": {"a": {"type": "local", "command": ["run"]}}},
        {"mcp_servers": {"a": ENTRY}},
        {"context_servers": {"a": {"source": "custom", "command": {"path": "run", "args": []}}}},
        {"amp.mcpServers": {"a": ENTRY}},
        {"mcpServers": [{"name": "a", **ENTRY}]},
        {"a": ENTRY},
        '\ufeff{/* all */ "mcpServers": { // ours\n "a": {"command": "run",}, },}',
    ],
    ids=str,
)
def test_the_servers_are_found_whatever_the_root(read: Read, content: Any) -> None:
    assert read(content) == {"a": StdioServer(command="run")}
    assert read.warnings == []


@pytest.mark.parametrize(
    "kind",
    [
        "http",
        "HTTP",
        "streamable-http",
        "streamableHttp",
        "streamable_http",
        "Streamable HTTP",
        "http-stream",
        "remote",
    ],
)
@pytest.mark.parametrize("key", ["type", "transport", "transportType"])
def test_a_type_may_be_spelled_in_any_way(read: Read, kind: str, key: str) -> None:
    assert read.one({key: kind, "url": URL}).type == "http"
    assert read.warnings == []


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"serverUrl": URL}, HttpServer(url=SecretStr(URL))),
        ({"httpUrl": URL}, HttpServer(url=SecretStr(URL))),
        ({"url": "http://sse", "httpUrl": URL}, HttpServer(url=SecretStr(URL))),
        (
            {"url": URL, "requestInit": {"headers": {"A": "b", "N": 5}}},
            HttpServer(url=SecretStr(URL), headers={"A": SecretStr("b"), "N": SecretStr("5")}),
        ),
        (
            {"url": URL, "http_headers": {"A": "b"}},
            HttpServer(url=SecretStr(URL), headers={"A": SecretStr("b")}),
        ),
        (
            {"type": "local", "command": ["npx", "-y", "x"], "environment": {"PORT": 80, "ON": True, "NO": None}},
            StdioServer(
                command="npx", args=("-y", "x"), env={"PORT": SecretStr("80"), "ON": SecretStr("true")}
            ),
        ),
        (
            {"command": {"path": "run", "args": ["-v"], "env": {"A": "b"}}, "settings": {}},
            StdioServer(command="run", args=("-v",), env={"A": SecretStr("b")}),
        ),
        (
            {"command": "run", "args": [8080], "cwd": "/srv"},
            StdioServer(command="run", args=("8080",), cwd=Path("/srv")),
        ),
        ({"command": "run", "workingDirectory": "/srv"}, StdioServer(command="run", cwd=Path("/srv"))),
        ({"command": "run", "trust": True, "alwaysAllow": ["x"], "autoApprove": []}, StdioServer(command="run")),
        (
            {"command": "run", "required": True, "max_concurrent": 2},
            StdioServer(command="run", required=True, max_concurrent=2),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_other_clients_words_mean_ours(read: Read, entry: dict[str, Any], expected: Server) -> None:
    assert read.one(entry) == expected
    assert read.warnings == []


@pytest.mark.parametrize(
    ("key", "value", "tool", "startup"),
    [
        ("timeout", 30, 30, 60),
        ("timeout", 3600, 3600, 60),
        ("timeout", 30_000, 30, 60),
        ("timeout", "45", 45, 60),
        ("timeout", 600_000, 600, 60),
        ("tool_timeout_sec", 5000, 5000, 60),
        ("timeoutMs", 500, 0.5, 60),
        ("startup_timeout_sec", 20, None, 20),
        ("startup_timeout_ms", 20_000, None, 20),
        ("connect_timeout", 10, None, 10),
        ("timeout", 0, None, 60),
        ("timeout", "soon", None, 60),
        ("timeout", 10**12, 86_400, 60),
    ],
)
def test_a_timeout_is_in_seconds_or_milliseconds(
    read: Read, key: str, value: Any, tool: float | None, startup: float
) -> None:
    server = read.one({"command": "run", key: value})
    assert (server.tool_timeout, server.startup_timeout) == (tool, startup)


def test_opencodes_timeout_is_that_of_the_list(read: Read) -> None:
    [server] = read({"mcp": {"a": {"type": "local", "command": ["run"], "timeout": 5000}}}).values()
    assert (server.tool_timeout, server.startup_timeout) == (None, 5)


# --- variables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelled", ["${T}", "${env:T}", "{env:T}", "$T", "${T:-other}", "${GONE:-secret}", "${env:GONE:-secret}"]
)
def test_variables_may_be_spelled_in_any_way(read: Read, spelled: str) -> None:
    server = read.one({"url": URL, "headers": {"A": spelled, "B": f"Bearer {spelled}"}}, T="secret")
    assert isinstance(server, HttpServer)
    assert [value.get_secret_value() for value in server.headers.values()] == ["secret", "Bearer secret"]


def test_a_dollar_that_names_no_variable_stays(read: Read) -> None:
    server = read.one({"command": "run", "args": ["$GONE", "a$b", "{x}", "$"]})
    assert isinstance(server, StdioServer) and server.args == ("$GONE", "a$b", "{x}", "$")


def test_places_of_editors_are_filled_in(read: Read, tmp_path: Path) -> None:
    args = ["${workspaceFolder}/src", "${workspaceFolderBasename}", "${userHome}/x", "a${pathSeparator}b"]
    [server] = read({"servers": {"a": {"command": "run", "args": args}}}, ".vscode/mcp.json").values()
    assert isinstance(server, StdioServer)
    assert server.args == (f"{tmp_path}/src", tmp_path.name, str(Path("~/x").expanduser()), "a/b")


@pytest.mark.parametrize("spelled", ["${input:token}", "Bearer ${input:token}", "{file:./key}", "${command:x.y}"])
def test_what_only_its_client_can_fill_in_costs_that_entry(read: Read, spelled: str) -> None:
    found = read({"servers": {"a": {"url": URL, "headers": {"Authorization": spelled}}, "b": {"command": "run"}}})
    assert list(found) == ["b"]
    [warning] = read.warnings
    assert "servers.a.headers.Authorization: found " in warning and "only another client" in warning
    assert "the server is left out" in warning and "mcp.config_file (mcp.json)" in warning


# --- bans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ban",
    [
        {"disabled": True},
        {"disabled": "true"},
        {"enabled": False},
        {"isActive": False},
        {"active": False},
        {"options": {"enabled": False}},
        {"disabled": "${OFF}"},
        {"enabled": True, "disabled": True},
    ],
    ids=str,
)
def test_a_server_that_is_turned_off_is_off(read: Read, ban: dict[str, Any]) -> None:
    assert list(read({"mcpServers": {"a": ENTRY | ban, "b": ENTRY}}, OFF="true")) == ["b"]
    assert read.warnings == []


@pytest.mark.parametrize("entry", [{"command": "${NOT_SET}"}, {"command": "x", "env": {"A": "${input:x}"}}, {}])
def test_nothing_is_said_of_a_server_that_is_off(read: Read, entry: dict[str, Any]) -> None:
    assert read({"mcpServers": {"a": entry | {"disabled": True}}}) == {}
    assert read.warnings == []


@pytest.mark.parametrize(
    "bans",
    [
        {"disabledMcpjsonServers": ["a"]},
        {"disabledServers": ["a"]},
        {"enabledMcpjsonServers": ["b"]},
        {"mcp": {"excluded": ["a"]}},
        {"mcp": {"allowed": ["b"]}},
        {"excludeMCPServers": ["a"]},
        {"allowMCPServers": ["b"]},
        {"deniedMcpServers": [{"serverName": "a"}]},
    ],
    ids=str,
)
def test_a_server_that_the_file_bans_is_off(read: Read, bans: dict[str, Any]) -> None:
    assert list(read({"mcpServers": {"a": ENTRY, "b": ENTRY}, **bans})) == ["b"]


@pytest.mark.parametrize("switch", [{"disabled": "maybe"}, {"enabled": 0}, {"disabled": []}], ids=str)
def test_a_switch_that_cannot_be_read_costs_the_entry(read: Read, switch: dict[str, Any]) -> None:
    assert list(read({"mcpServers": {"a": ENTRY | switch, "b": ENTRY}})) == ["b"]
    [warning] = read.warnings
    assert "allowed: true or false; the server is left out" in warning


TOOLS = ("read_file", "read_all", "write_file", "rm")


@pytest.mark.parametrize(
    ("keys", "offered"),
    [
        ({"disabledTools": ["rm"]}, ["read_file", "read_all", "write_file"]),
        ({"disabled_tools": ["rm", "write_file"]}, ["read_file", "read_all"]),
        ({"excludeTools": ["rm"]}, ["read_file", "read_all", "write_file"]),
        ({"excludeTools": "rm"}, ["read_file", "read_all", "write_file"]),
        ({"disabledTools": {"rm": True, "read_all": False}}, ["read_file", "read_all", "write_file"]),
        ({"includeTools": ["rm"]}, ["rm"]),
        ({"includeTools": ["rm(x)", "r"]}, ["rm"]),
        ({"enabled_tools": ["read_file"]}, ["read_file"]),
        ({"allowedTools": ["read_*"], "disabledTools": ["*_all"]}, ["read_file"]),
        ({"allowedTools": ["mcp__a__rm"]}, ["rm"]),
        ({"includeTools": []}, []),
        ({"disabledTools": []}, list(TOOLS)),
        ({"disabledTools": None}, list(TOOLS)),
        ({"tools": ["*"]}, list(TOOLS)),
        ({"tools": ["rm"]}, ["rm"]),
        ({"tools": []}, []),
        ({"tools": {"include": ["rm", "read_all"], "exclude": ["rm"]}}, ["read_all"]),
        ({"tools": {"exclude": ["rm"]}}, ["read_file", "read_all", "write_file"]),
        ({"tools": {"rm": {"enabled": False}, "read_all": {"enabled": True}}}, ["read_file", "read_all", "write_file"]),
        ({"tools": {"rm": False}}, ["read_file", "read_all", "write_file"]),
        ({"allow": "^read", "includeTools": ["read_all", "rm"]}, ["read_all"]),
        ({"deny": "^read", "excludeTools": ["rm"]}, ["write_file"]),
        ({"includeTools": ["read_file", "rm"], "tools": ["rm", "read_all"]}, ["rm"]),
    ],
    ids=str,
)
def test_bans_of_tools_are_kept_in_any_clients_words(read: Read, keys: dict[str, Any], offered: list[str]) -> None:
    assert offers(read.one(ENTRY | keys), *TOOLS) == offered
    assert read.warnings == []


def test_names_of_tools_are_no_patterns_but_for_wildcards(read: Read) -> None:
    server = read.one(ENTRY | {"disabledTools": ["a.b", "x+"]})
    assert offers(server, "a.b", "axb", "x+", "xx") == ["axb", "xx"]


def test_opencodes_switches_of_tools_are_kept(read: Read) -> None:
    entry = {"type": "local", "command": ["run"]}
    found = read({"mcp": {"a": entry, "b": entry}, "tools": {"a_rm": False, "b_*": False, "a_read_all": True}})
    assert offers(found["a"], *TOOLS) == ["read_file", "read_all", "write_file"]
    assert offers(found["b"], *TOOLS) == []


@pytest.mark.parametrize("key", ["disabledTools", "includeTools", "tools"])
@pytest.mark.parametrize("value", [5, [["rm"]], True])
def test_a_ban_that_cannot_be_read_costs_the_entry(read: Read, key: str, value: Any) -> None:
    assert list(read({"mcpServers": {"a": ENTRY | {key: value}, "b": ENTRY}})) == ["b"]
    assert "a list of the names of tools" in read.warnings[0]


# --- what is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "mcpServers.a.url: found nothing"),
        (5, "mcpServers.a: found a whole number"),
        (None, "mcpServers.a: found nothing"),
        ({"type": "websocket", "url": URL}, 'mcpServers.a.type: found text: "websocket"; allowed: stdio, http'),
        ({"command": "${NOT_SET}"}, "mcpServers.a.command: found ${NOT_SET}, which is not set"),
        ({"cmd": "x"}, '(did you mean "command"?)'),
        ({"url": f"ftp://h?{SECRET}"}, "mcpServers.a.url: found text; allowed: http"),
        ({"command": "x", "env": {"A": [SECRET]}}, "mcpServers.a.env.A: found a list"),
        ({"command": "x", "allow": "("}, "mcpServers.a.allow[0]: found"),
    ],
    ids=str,
)
def test_one_bad_entry_costs_that_entry_only(read: Read, entry: Any, said: str) -> None:
    assert list(read({"mcpServers": {"a": entry, "b": ENTRY}})) == ["b"]
    assert said in "\n".join(read.warnings)
    assert all(warning.endswith("the server is left out") for warning in read.warnings)
    assert SECRET not in "\n".join(read.warnings)


def test_what_is_not_understood_is_warned_of(read: Read) -> None:
    server = read.one({"command": "run", "sandbox": {"network": False}, "oauth": {}, "a\nb": 1})
    assert server == StdioServer(command="run")
    [warning] = read.warnings
    assert warning.endswith('mcpServers.a: keys that are not understood: "a\\nb", oauth, sandbox')


def test_a_name_that_tools_cannot_have_is_changed(read: Read) -> None:
    found = read({"mcpServers": {"io.github/x y": ENTRY, "io_github_x_y": ENTRY, "b": ENTRY}})
    assert sorted(found) == ["b", "io_github_x_y"]
    renamed, twin = read.warnings
    assert 'mcpServers."io.github/x y" is called io_github_x_y' in renamed
    assert "a second server of this name" in twin


@pytest.mark.parametrize(
    ("content", "where"), [('{"mcpServers": {\n // x\n "a" 5}}', "line 3, column 6"), ("{'a': 1}", "line 1, column 2")]
)
def test_a_mistake_behind_a_comment_has_its_line(read: Read, content: str, where: str) -> None:
    with pytest.raises(Exception, match=where):
        read(content)


def test_texts_that_look_like_comments_stay(read: Read) -> None:
    server = read.one({"url": "http://h//x", "headers": {"A": "/* b */ // c, ]", "B": 'quote " // d,}'}})
    assert isinstance(server, HttpServer)
    assert [value.get_secret_value() for value in server.headers.values()] == ["/* b */ // c, ]", 'quote " // d,}']
    assert server.url.get_secret_value() == "http://h//x"
