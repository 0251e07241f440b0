"""Misspelt names: of every key of the configuration, the error suggests the right one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from aibridge_addon.config.errors import ConfigError, did_you_mean, models_in
from aibridge_addon.config.load import load
from aibridge_addon.config.schema import HttpServer, Settings, StdioServer

UNLIKE = "zqxj" * 250


def sections(model: type[BaseModel] = Settings) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            yield from sections(inner)


SECTIONS = {model.__name__: model for model in sections()}


def misspelt(key: str) -> list[str]:
    """Slips of fingers: a letter too few, twice, in capitals, swapped, and a hyphen in the place of an underscore."""
    middle = len(key) // 2
    slips = [
        key[:middle] + key[middle + 1 :],
        key[:middle] + key[middle] + key[middle:],
        key.upper(),
        key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :],
        key.replace("_", "-"),
    ]
    return [slip for slip in slips if slip != key]


@pytest.mark.parametrize("name", SECTIONS)
def test_every_misspelt_key_suggests_the_right_one(name: str) -> None:
    keys = sorted(SECTIONS[name].model_fields)
    for key in keys:
        for slip in misspelt(key):
            assert did_you_mean(slip, keys) == f' (did you mean "{key}"?)'


def test_every_section_is_reached() -> None:
    assert {HttpServer, StdioServer} <= set(SECTIONS.values())
    assert len(SECTIONS) > 15


def problems(folder: Path, text: str) -> dict[str, str]:
    path = folder / "aibridge.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, environ={})
    return {problem.path: problem.expected for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("text", "path", "meant"),
    [
        ("provider: []", "provider", "providers"),
        ("providers: [{name: a, typ: openai}]", "providers[0].typ", "type"),
        ("providers: [{name: a, type: openai, bedrock: {regin: x}}]", "providers[0].bedrock.regin", "region"),
        ("recording: {retention: {contents: 1d}}", "recording.retention.contents", "content"),
        ("recording: {spool: {pth: a}}", "recording.spool.pth", "path"),
        ("actor: {group: {}}", "actor.group", "groups"),
        ("budgets: [{name: a, per: all, period: day, dollars: 1, token: 5}]", "budgets[0].token", "tokens"),
        ("mcp: {server: {}}", "mcp.server", "servers"),
        ("mcp: {servers: {a: {cmd: x}}}", "mcp.servers.a.cmd", "command"),
        ("mcp: {servers: {a: {commnd: x, args: []}}}", "mcp.servers.a.commnd", "command"),
        ("mcp: {servers: {a: {type: stdio, cmd: x}}}", "mcp.servers.a.cmd", "command"),
        ("mcp: {servers: {a: {ulr: 'http://host'}}}", "mcp.servers.a.ulr", "url"),
        ("mcp: {servers: {a: {URL: 'http://host'}}}", "mcp.servers.a.URL", "url"),
        ("mcp: {servers: {a: {command: x, envs: {}}}}", "mcp.servers.a.envs", "env"),
        ("mcp: {servers: {a: {url: 'http://host', header: {}}}}", "mcp.servers.a.header", "headers"),
    ],
)  # fmt: skip
def test_the_error_of_a_file_has_the_suggestion(tmp_path: Path, text: str, path: str, meant: str) -> None:
    assert f'(did you mean "{meant}"?)' in problems(tmp_path, text)[path]


def test_a_key_that_resembles_none_gets_no_suggestion(tmp_path: Path) -> None:
    [(_, expected)] = problems(tmp_path, f"actor: {{{UNLIKE}: 1}}").items()
    assert expected.startswith("one of default, ") and "did you mean" not in expected
