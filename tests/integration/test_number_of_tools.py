"""More tools than a request may have."""

from __future__ import annotations

import json
from typing import Any

from tests.conftest import StartProxy
from tests.integration.exchanges import OPENAI, Client
from tests.integration.turns import JSON_BODY, configuration
from tests.support.mcp_servers import HttpMcp
from tests.support.upstream import Answer, ScriptedUpstream

OWN_NAMES = [f"own_{n}" for n in range(28)]
OWN = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in OWN_NAMES]
QUESTION = {"model": "gpt-5", "messages": [{"role": "user", "content": "Hi"}], "tools": OWN}
ANSWER: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion",
    "model": "gpt-5",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
}


def test_the_clients_tools_come_first_and_what_does_not_fit_is_left_out(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    with HttpMcp("--paged", "--endless") as server:
        proxy = start_proxy(config=configuration(upstream.url, f"servers: {{p: {{type: http, url: '{server.url}'}}}}"))
        proxy.wait_for_log(r"MCP server p: connected, 300 tools")
        upstream.answer(Answer.json(ANSWER), Answer.json(ANSWER))
        with Client(proxy, OPENAI) as client:
            for _ in range(2):
                client.post("/v1/chat/completions", json.dumps(QUESTION).encode(), JSON_BODY)
    sent = [json.loads(request.body)["tools"] for request in upstream.requests]
    assert sent[0] == sent[1]
    names = [tool["function"]["name"] for tool in sent[0]]
    assert names[:28] == OWN_NAMES
    assert len(names) == 128 and all(name.startswith("bmcp_p_") for name in names[28:])
    line = "MCP tools do not fit into a request: the API takes 128, the client has 28, 100 of 300 are offered"
    assert proxy.log.count(line) == 1
