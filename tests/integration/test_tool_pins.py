"""A tool that changes is left out by a running bridge, until it is approved on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from aibridge_addon import cli
from aibridge_addon.tools.pins import CHECKED_EVERY
from tests.conftest import StartProxy
from tests.integration.exchanges import Client
from tests.integration.turns import Turns, configuration, text, tool_names
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.scripted_mcp import ScriptedMcp, tool
from tests.support.upstream import ScriptedUpstream
from tests.tools.conftest import WITHIN


def offered(proxy: RunningProxy, upstream: ScriptedUpstream) -> set[str]:
    turns = Turns("messages", [text("Hello.")])
    upstream.answer(*turns.answers(streaming=False))
    with Client(proxy, turns.host) as client:
        assert client.post(turns.path, turns.request(streaming=False)).status == 200
    return set(tool_names(upstream.requests[-1])) - {"Read"}


def test_a_changed_tool_is_offered_again_when_it_is_approved(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    server = ScriptedMcp(tmp_path / "server.json", tool("a"), tool("b"))
    mcp = f"startup_wait: {WITHIN}\nservers: {json.dumps({'ours': server.entry(pin=True)})}"
    first = start_proxy(config=configuration(upstream.url, mcp))
    assert offered(first, upstream) == {"bmcp_ours_a", "bmcp_ours_b"}
    first.close()
    server.write(tool("a", "Does something else."), tool("b"))
    second = start_proxy(config=configuration(upstream.url, mcp, more=f"database: 'sqlite:///{first.database}'"))
    assert offered(second, upstream) == {"bmcp_ours_b"}
    second.wait_for_log("tools have changed since they were pinned, and are left out .*'a'")
    assert cli.main(["tools", "approve", "a", "--config", str(second.folder / "aibridge.yaml")]) == 0
    both = {"bmcp_ours_a", "bmcp_ours_b"}
    poll_until(lambda: offered(second, upstream) == both, WITHIN + CHECKED_EVERY, what="the approved tool")
