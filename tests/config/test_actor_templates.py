"""`${actor}` in headers and environment of MCP servers: read once, rendered for each actor."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aibridge_addon.config.actor_templates import ActorTemplate
from aibridge_addon.config.errors import ConfigError
from aibridge_addon.config.load import load
from aibridge_addon.config.schema import HttpServer, Settings, rendered


def configured(folder: Path, servers: object, mcp_file: object = None, **environ: str) -> Settings:
    file = folder / "aibridge.yaml"
    mcp: dict[str, object] = {"servers": servers}
    if mcp_file is not None:
        (folder / ".mcp.json").write_text(json.dumps({"mcpServers": mcp_file}))
        mcp["config_file"] = ".mcp.json"
    file.write_text(json.dumps({"actor": {"metadata": {"team": "red", "x-y": "z"}}, "mcp": mcp}))
    return load(file, environ=environ)


def http(text: str) -> dict[str, object]:
    return {"s": {"url": "https://mcp.test", "headers": {"X": text}}}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${actor}", "ada"),
        ("Bearer ${TOKEN}-${actor}", "Bearer t0k-ada"),
        ("${actor}${actor}", "adaada"),
        ("${actor.metadata.team}", "red"),
        ("${actor.metadata.x-y}/${actor}", "z/ada"),
        ("$${actor}", "${actor}"),
        ("$${actor} ${actor}", "${actor} ada"),
        ("${UNSET:-d} ${actor}", "d ada"),
        ("${NAMES_ACTOR}", "${actor}"),
        ("${NAMES_ACTOR} ${actor}", "${actor} ada"),
        ("plain", "plain"),
    ],
)
def test_a_header_is_rendered_for_an_actor(tmp_path: Path, text: str, result: str) -> None:
    """A variable's value is a text, and no template."""
    environ = {"TOKEN": "t0k", "NAMES_ACTOR": "${actor}"}
    for settings in (
        configured(tmp_path, http(text), **environ),
        configured(tmp_path, {}, mcp_file=http(text), **environ),
    ):
        server = settings.mcp.servers["s"]
        made = rendered(server, "ada", settings.actor.metadata)
        assert isinstance(made, HttpServer)
        assert made.headers["X"].get_secret_value() == result
        assert not isinstance(made.headers["X"], ActorTemplate)
        assert bool(server.templates) is bool(re.search(r"(?<!\$)\$\{actor", text))


def test_a_variable_of_a_program_is_rendered_too(tmp_path: Path) -> None:
    settings = configured(tmp_path, {"s": {"command": "x", "env": {"WHO": "${actor}", "TZ": "UTC"}}})
    made = rendered(settings.mcp.servers["s"], "ada", {})
    assert {name: value.get_secret_value() for name, value in made.env.items()} == {"WHO": "ada", "TZ": "UTC"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("servers", "path", "expected"),
    [
        ({"s": {"url": "https://mcp.test/${actor}"}}, "mcp.servers.s.url", "in headers and env of MCP servers only"),
        ({"s": {"command": "x", "args": ["${actor}"]}}, "mcp.servers.s.args[0]", "in headers and env"),
        ({"s": {"command": "x", "args": ["${actor.metadata.team}"]}}, "mcp.servers.s.args[0]", "in headers and env"),
        (http("${actor.metadata.tema}"), "mcp.servers.s.headers.X", "a key of actor.metadata"),
        (http("${actor.groups}"), "mcp.servers.s.headers.X", "${VAR}"),
        (http("${actor.metadata.}"), "mcp.servers.s.headers.X", "${VAR}"),
    ],
)
def test_a_wrong_reference_is_reported(tmp_path: Path, servers: object, path: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, servers)
    [problem] = caught.value.problems
    assert problem.path == path
    assert expected in problem.expected


def test_an_environment_variable_called_actor_counts_elsewhere(tmp_path: Path) -> None:
    settings = configured(tmp_path, {"s": {"command": "x", "args": ["${actor}"]}}, actor="env")
    assert settings.mcp.servers["s"].args == ("env",)  # type: ignore[union-attr]
