"""What a server learns of its caller can be sent, whatever the caller's name is."""

from __future__ import annotations

import asyncio
import json

import pytest

from aibridge_addon.tools.caller import Caller
from tests.support.mcp_servers import HttpMcp
from tests.tools.conftest import WITHIN, StartServers


@pytest.mark.parametrize("name", ["ada", "Zoë Grün", "a\r\nX-Evil: 1", "half \ud83d", "\0", "日本", " padded "])
def test_a_name_is_one_printable_text(name: str) -> None:
    caller = Caller(name, "i", {"team": name})
    assert set(caller.meta()) == {"aibridge/actor_id", "aibridge/interception_id"}
    json.dumps(caller.meta(), ensure_ascii=False).encode()
    assert set(caller.headers()) == {"X-AI-Bridge-Actor-ID", "X-AI-Bridge-Actor-Metadata-team"}
    for value in caller.headers().values():
        assert value.decode().isprintable()


@pytest.mark.parametrize("kind", [(), ("--legacy",), ("--json",)], ids=" ".join)
async def test_calls_that_run_at_the_same_time_name_their_own_actors(
    start: StartServers, kind: tuple[str, ...]
) -> None:
    with HttpMcp(*kind) as server:
        stage = start({"ours": server.settings(send_actor_headers=True, headers={"X-Own": "1"})})
        tool = await stage.tool("bmcp_ours_headers")

        async def named(actor: str) -> str:
            result = await stage.servers.call(tool, {}, WITHIN, caller=Caller(actor, "i"))
            [block] = result["content"]
            return str(json.loads(block["text"])["x-ai-bridge-actor-id"])

        actors = [f"actor-{n}" for n in range(8)] + ["Zoë"]
        sent = [actor.encode().decode("latin-1") for actor in actors]
        assert await asyncio.gather(*(asyncio.create_task(named(actor)) for actor in actors)) == sent


async def test_headers_of_the_server_itself_win(start: StartServers, ours: HttpMcp) -> None:
    stage = start({"ours": ours.settings(send_actor_headers=True, headers={"X-AI-Bridge-Actor-ID": "fixed"})})
    tool = await stage.tool("bmcp_ours_headers")
    result = await stage.servers.call(tool, {}, WITHIN, caller=Caller("ada", "i"))
    assert json.loads(result["content"][0]["text"])["x-ai-bridge-actor-id"] == "fixed"
