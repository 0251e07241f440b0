"""Logins of people at MCP servers, in the configuration and in files of other clients."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon.config.errors import ConfigError
from aibridge_addon.config.load import load
from aibridge_addon.config.oauth import KEY_VARIABLE, OAuth, base_url
from aibridge_addon.config.schema import HttpServer, Mcp

KEY = "k" * 44
SECRET = "s3cret-never-print-me"


def read(folder: Path, oauth: Any, more: str = "", **environ: str) -> Mcp:
    entry = {"url": "https://mcp.example/mcp", "oauth": oauth}
    (folder / "aibridge.yaml").write_text(f"mcp:\n  servers: {json.dumps({'x': entry})}\n{more}")
    return load(folder / "aibridge.yaml", environ=environ).mcp


def problem(folder: Path, oauth: Any, more: str = "", **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, oauth, more, **environ)
    return str(caught.value).replace(str(folder), "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, OAuth()),
        (True, OAuth()),
        (False, None),
        (None, None),
        ({"scopes": "read  write"}, OAuth(scopes=("read", "write"))),
        ({"scopes": ["read"]}, OAuth(scopes=("read",))),
        ({"client_id": "", "client_secret": "", "scopes": None}, OAuth()),
    ],
)
def test_forms_of_oauth(tmp_path: Path, given: Any, expected: OAuth | None) -> None:
    server = read(tmp_path, given, **{KEY_VARIABLE: KEY}).servers["x"]
    assert isinstance(server, HttpServer)
    assert server.oauth == expected
    assert ("oauth" in server.credentials) is (expected is not None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"client_secret": SECRET}, "mcp.servers.x.oauth.client_secret: found a client_secret alone"),
        ({"client_idd": "a"}, 'mcp.servers.x.oauth.client_idd: found an unknown key; .*did you mean "client_id"'),
        ({"scopes": ['a"b']}, r"mcp.servers.x.oauth.scopes\[0\]: .*allowed: a scope"),
        ({"client_id": "a", "client_secret": f"{SECRET} {SECRET}"}, "mcp.servers.x.oauth.client_secret: found text;"),
        ("yes", "mcp.servers.x.oauth: found text"),
    ],
)
def test_mistakes_in_oauth(tmp_path: Path, given: Any, expected: str) -> None:
    said = problem(tmp_path, given, **{KEY_VARIABLE: KEY})
    assert SECRET not in said
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, given, **{KEY_VARIABLE: KEY})


def test_a_start_without_a_key_is_refused(tmp_path: Path) -> None:
    said = problem(tmp_path, {})
    assert "mcp.token_key: found null, although mcp.servers.x.oauth is set" in said
    assert said.endswith(f"encrypts the tokens of those who log in: openssl rand -base64 32, in {KEY_VARIABLE}")
    assert read(tmp_path, None).token_key == ()


def test_keys_come_from_the_file_or_the_environment(tmp_path: Path) -> None:
    def keys(more: str = "", **environ: str) -> list[str]:
        return [key.get_secret_value() for key in read(tmp_path, {}, more, **environ).token_key]

    other = "o" * 44
    assert keys(**{KEY_VARIABLE: f"{KEY},{other}"}) == [KEY, other]
    assert keys("  token_key: ${MINE}\n", MINE=KEY, **{KEY_VARIABLE: other}) == [KEY]
    assert keys(f"  token_key: [{KEY}, {other}]\n") == [KEY, other]
    assert keys("  token_key: ''\n", **{KEY_VARIABLE: KEY}) == [KEY]
    said = problem(tmp_path, {}, **{KEY_VARIABLE: SECRET})
    assert "mcp.token_key: found a shorter key" in said
    assert SECRET not in said


@pytest.mark.parametrize("more", ["headers: {authorization: x}", "headers_command: token"])
def test_a_server_has_one_credential(tmp_path: Path, more: str) -> None:
    (tmp_path / "aibridge.yaml").write_text(f"mcp: {{servers: {{x: {{url: 'https://h/mcp', oauth: {{}}, {more}}}}}}}")
    with pytest.raises(ConfigError, match=r"mcp\.servers\.x\.oauth: found both"):
        load(tmp_path / "aibridge.yaml", environ={KEY_VARIABLE: KEY})


@pytest.mark.parametrize(
    ("login_url", "served_at", "expected"),
    [
        (None, "127.0.0.1:9464", "http://127.0.0.1:9464"),
        (None, "0.0.0.0:9464", "http://127.0.0.1:9464"),
        (None, "[::]:9464", "http://[::1]:9464"),
        (None, "[2001:db8::1]:80", "http://[2001:db8::1]:80"),
        (None, "", ""),
        ("https://gateway.example/a", "127.0.0.1:9464", "https://gateway.example/a"),
        ("https://gateway.example", "", "https://gateway.example"),
    ],
)
def test_where_the_login_pages_are(login_url: str | None, served_at: str, expected: str) -> None:
    assert base_url(login_url, served_at) == expected


@pytest.mark.parametrize("url", ["ftp://h", "https://u:p@h", "https://h/?a=b", "https://h/#a", "h", 3])
def test_a_login_url_is_a_plain_url(tmp_path: Path, url: Any) -> None:
    assert "mcp.login_url: found" in problem(tmp_path, None, f"  login_url: {json.dumps(url)}\n")
    assert read(tmp_path, None, "  login_url: https://h/a/\n").login_url == "https://h/a"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, OAuth()),
        ({"clientId": "c", "callbackPort": 8080}, OAuth(client_id="c")),
        ({"clientId": "c", "clientSecret": "${S}", "scope": "a b"}, ("c", "s", ("a", "b"))),
        ({"enabled": False, "clientId": "c"}, None),
        (False, None),
        (True, OAuth()),
    ],
)
def test_logins_in_files_of_other_clients(tmp_path: Path, entry: Any, expected: Any) -> None:
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"a": {"url": "https://h/mcp", "oauth": entry}}}))
    (tmp_path / "aibridge.yaml").write_text("mcp: {config_file: mcp.json}")
    server = load(tmp_path / "aibridge.yaml", environ={KEY_VARIABLE: KEY, "S": "s"}).mcp.servers["a"]
    assert isinstance(server, HttpServer)
    found = server.oauth
    if isinstance(expected, tuple):
        assert found is not None
        assert found.client_secret is not None
        assert (found.client_id, found.client_secret.get_secret_value(), found.scopes) == expected
    else:
        assert found == expected


def test_without_a_key_a_login_costs_the_entry_of_another_client_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers = {"a": {"url": "https://h/mcp", "oauth": {}}, "b": {"url": "https://h/mcp"}}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    (tmp_path / "aibridge.yaml").write_text("mcp: {config_file: mcp.json}")
    with caplog.at_level(logging.WARNING):
        assert set(load(tmp_path / "aibridge.yaml", environ={}).mcp.servers) == {"b"}
    [line] = caplog.messages
    assert "mcpServers.a.oauth: found a login, and mcp.token_key is null" in line
    assert line.endswith("the server is left out")
