"""The whole port is one provider, recognised by the host that mitmproxy's reverse mode leads to."""

from __future__ import annotations

import json

from tests.conftest import StartProxy
from tests.support import fixtures
from tests.support.client import gateway_client
from tests.support.upstream import Answer, ScriptedUpstream

SIMPLE = fixtures.case("messages/simple/blocking")


def test_reverse_mode_records_by_its_host(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(
        mode=[f"reverse:{upstream.url}"], config="providers: [{name: a, type: anthropic, hosts: [localhost]}]"
    )
    upstream.answer(Answer.json(json.loads(SIMPLE.body)))
    with gateway_client(proxy) as client:
        answer = client.post("/v1/messages?beta=true", content=SIMPLE.request, headers={"x-api-key": "secret"})
    assert (answer.status_code, answer.json()) == (200, json.loads(SIMPLE.body))
    [request] = upstream.requests
    assert (request.target, request.body) == ("/v1/messages?beta=true", SIMPLE.request)
    [row] = proxy.rows("aibridge_interceptions")
    assert (row["provider_name"], row["route"], row["status"]) == ("a", "/v1/messages", "completed")
