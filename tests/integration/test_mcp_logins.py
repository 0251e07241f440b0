"""People log in at an MCP server through a real bridge: the link in a tool's result, its pages, its rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest

from aibridge_addon import cli
from tests.conftest import StartProxy
from tests.integration.exchanges import Client
from tests.integration.turns import Turns, call, configuration, text, tool_names
from tests.support.database import query
from tests.support.oauth_server import KEY, Browser, OAuthMcp
from tests.support.running import RunningProxy, StartFailedError
from tests.support.upstream import ScriptedUpstream, unused_port
from tests.tools.conftest import WITHIN

LINK = re.compile(r"http://[0-9.:]+/mcp/login/ours\?ticket=[A-Za-z0-9_-]+")


@pytest.fixture
def server() -> Iterator[OAuthMcp]:
    with OAuthMcp() as server:
        server.provider.user = "ada-there"
        yield server


def with_login(upstream: ScriptedUpstream, server: OAuthMcp, port: int, more: str = "") -> str:
    entry = {"type": "http", "url": server.url, "oauth": {}}
    mcp = f"startup_wait: {WITHIN}\ntoken_key: {KEY}\nservers: {json.dumps({'ours': entry})}"
    listen = f"metrics: {{listen: '127.0.0.1:{port}'}}\nactor: {{default: ada}}\n{more}"
    return configuration(upstream.url, mcp, more=listen)


def used(proxy: RunningProxy, upstream: ScriptedUpstream, tool: str) -> str:
    """Let the model call a tool, and return the result that it gets."""
    turns = Turns("messages", [call(tool)], [text("Done.")])
    upstream.answer(*turns.answers(streaming=False))
    with Client(proxy, turns.host) as client:
        assert client.post(turns.path, turns.request(streaming=False)).status == 200
    return upstream.requests[-1].body.decode()


def test_the_first_use_shows_a_link_and_later_ones_go_on(
    start_proxy: StartProxy, upstream: ScriptedUpstream, server: OAuthMcp
) -> None:
    port = unused_port()
    proxy = start_proxy(config=with_login(upstream, server, port))
    result = used(proxy, upstream, "login")
    assert set(tool_names(upstream.requests[-1])) - {"Read"} == {"bmcp_ours_login"}
    [link] = LINK.findall(result)
    assert link.startswith(f"http://127.0.0.1:{port}/")
    with Browser() as browser:
        page = browser.get(link)
        assert (page.status_code, "ada can use its tools now" in page.text) == (200, True)
        assert page.headers["cache-control"] == "no-store"
        assert browser.get(link).status_code == 400
        assert browser.post(link).status_code == 405
        assert browser.get(f"http://127.0.0.1:{port}/mcp/login/other?ticket=x").status_code == 404
    assert "ada-there" in used(proxy, upstream, "whoami")
    assert set(tool_names(upstream.requests[-1])) - {"Read"} == {"bmcp_ours_whoami", "bmcp_ours_echo"}
    ready = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
    assert ready.json()["mcp_servers"]["ours"] == {
        "up": True,
        "required": False,
        "tools": 2,
        "left_out": 0,
        "logged_in": True,
    }
    proxy.close()
    [first, second] = query(proxy.database, "select * from aibridge_tool_usages order by created_at")
    assert "ticket=[redacted]" in first["invocation_error"]
    assert first["metadata"]["error_kind"] == "login"
    assert second["invocation_error"] is None
    ticket = link.rpartition("=")[2]
    for secret in (ticket, *server.provider.all_tokens):
        assert secret.encode() not in proxy.database.read_bytes()
        assert secret not in proxy.log


def test_a_logout_on_the_command_line_ends_a_login(
    start_proxy: StartProxy, upstream: ScriptedUpstream, server: OAuthMcp, capsys: pytest.CaptureFixture[str]
) -> None:
    port = unused_port()
    proxy = start_proxy(config=with_login(upstream, server, port))
    [link] = LINK.findall(used(proxy, upstream, "login"))
    with Browser() as browser:
        assert browser.get(link).status_code == 200
    assert "ada-there" in used(proxy, upstream, "whoami")
    config = ["--config", str(proxy.folder / "aibridge.yaml")]
    assert cli.main(["tools", "logout", "ours", "--actor", "bob", *config]) == 0
    assert "bob is not logged in at ours." in capsys.readouterr().out
    assert cli.main(["tools", "logout", "ours", *config]) == 0
    assert "ada: revoked and deleted" in capsys.readouterr().out
    assert not server.provider.access
    assert LINK.search(used(proxy, upstream, "whoami"))
    assert cli.main(["tools", "logout", "nothing", *config]) == 2
    assert cli.main(["tools", "logout", "ours", "--all", "--actor", "bob", *config]) == 2


def test_the_command_line_says_who_is_not_logged_in_and_shows_the_link(
    start_proxy: StartProxy, upstream: ScriptedUpstream, server: OAuthMcp, capsys: pytest.CaptureFixture[str]
) -> None:
    port = unused_port()
    proxy = start_proxy(config=with_login(upstream, server, port))
    config = ["--config", str(proxy.folder / "aibridge.yaml")]
    assert cli.main(["tools", *config]) == 0
    assert "ours: not logged in: call a tool to get a link" in capsys.readouterr().out
    assert cli.main(["tools", "call", "bmcp_ours_login", *config]) == 1
    [link] = LINK.findall(capsys.readouterr().out)
    with Browser() as browser:
        assert browser.get(link).status_code == 200
    assert cli.main(["tools", *config]) == 0
    assert "ours: up, 2 tools offered" in capsys.readouterr().out
    assert cli.main(["tools", "call", "whoami", *config]) == 0
    assert "ada-there" in capsys.readouterr().out


def test_a_start_without_a_key_is_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, server: OAuthMcp
) -> None:
    config = with_login(upstream, server, unused_port()).replace(KEY, "''")
    with pytest.raises(StartFailedError, match=r"mcp\.token_key: found null, although mcp\.servers\.ours"):
        start_proxy(config=config)
