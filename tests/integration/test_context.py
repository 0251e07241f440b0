"""Where the context of requests goes, as a real proxy records it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.proxy.flow.inject_tools import LARGE
from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.sockets import CODEX, Provider, config, read, served, text, through
from tests.integration.turns import BY_DIALECT, CONNECTED, Turns, configuration
from tests.integration.turns import text as words
from tests.support import fixtures, frames
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

SIMPLE = fixtures.case("messages/simple/streaming")


def metadata(proxy: RunningProxy) -> Any:
    [row] = wait_for_ended(proxy, 1)
    return row["metadata"]


@pytest.mark.parametrize("size", [100, 2 * LARGE])
def test_the_categories_add_up_to_the_clients_request(
    start_proxy: StartProxy, upstream: ScriptedUpstream, size: int
) -> None:
    proxy = start_proxy(config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]\n")
    request = json.loads(SIMPLE.request)
    before = [{"role": "user", "content": "x" * size}, {"role": "assistant", "content": "Hm."}]
    body = json.dumps({**request, "messages": [*before, *request["messages"]]}).encode()
    upstream.answer(Answer.event_stream(SIMPLE.body))
    with Client(proxy, ANTHROPIC) as client:
        assert client.post("/v1/messages", body).body == SIMPLE.body
    [sent] = upstream.requests
    found = metadata(proxy)
    assert sent.body == body
    assert sum(found["context_bytes"].values()) == len(body)
    assert found["context_bytes"]["history"] == sum(len(json.dumps(entry)) for entry in before)
    assert "schema_bytes" not in found


@BY_DIALECT
def test_injected_tools_are_a_category_of_their_own(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, dialect: str
) -> None:
    proxy = start_proxy(config=configuration(upstream.url, f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"))
    proxy.wait_for_log(CONNECTED)
    turns = Turns(dialect, [words("Done.")])
    upstream.answer(*turns.answers(streaming=False))
    with Client(proxy, turns.host) as client:
        client.post(turns.path, turns.request(streaming=False))
    [sent] = upstream.requests
    tools = json.loads(sent.body)["tools"]
    injected = [tool for tool in tools if "bmcp_ours_" in json.dumps(tool)]
    found = metadata(proxy)
    size = sum(len(json.dumps(tool, separators=(",", ":"), ensure_ascii=False).encode()) for tool in injected)
    assert found["schema_bytes"] == {"ours": size}
    assert found["context_bytes"]["our_tools"] == size
    assert 0 < found["context_bytes"]["client_tools"] < found["context_bytes"]["our_tools"]
    assert sum(found["context_bytes"].values()) == len(sent.body)


def test_requests_of_a_websocket_are_divided_as_well(start_proxy: StartProxy) -> None:
    provider = Provider()
    with served(provider.serve) as provider.port:
        proxy = start_proxy(config=config(provider.port))
        events = text(*frames.events(CODEX))
        provider.answer(*events)
        with through(proxy) as client:
            client.send(request := frames.create(CODEX).decode())
            read(client, len(events))
            counts = metadata(proxy)["context_bytes"]
    assert sum(counts.values()) == len(request.encode())
    assert counts["client_tools"] > 0
