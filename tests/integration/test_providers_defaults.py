"""Providers of the default set that have no address of their own: a request goes to the host that its client named."""

from __future__ import annotations

import json

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import wait_for_ended
from tests.support import fixtures, resolver
from tests.support.client import RawHttp1, connect_through
from tests.support.script import Answer

TOKEN = "tid=0123456789abcdef;8kp=1:Zm9vYmFy"
BEARER = ("authorization", f"Bearer {TOKEN}")
DEPLOYMENT = "/openai/deployments/our-gpt/chat/completions"

# host, path, provider's name and type
HOSTS = (
    ("api.githubcopilot.com", "/chat/completions", "copilot", "copilot"),
    ("api.individual.githubcopilot.com", "/chat/completions", "copilot", "copilot"),
    ("api.business.githubcopilot.com", "/chat/completions", "copilot-business", "copilot"),
    ("api.enterprise.githubcopilot.com", "/chat/completions", "copilot-enterprise", "copilot"),
    ("ours.openai.azure.com", DEPLOYMENT, "azure", "azure"),
    ("ours.cognitiveservices.azure.com", DEPLOYMENT, "azure", "azure"),
    ("ours.services.ai.azure.com", "/openai/v1/chat/completions", "azure", "azure"),
    ("ours.openai.azure.us", "/openai/v1/chat/completions", "azure", "azure"),
    ("eu.api.openai.com", "/v1/chat/completions", "openai", "openai"),
)
NAMES = [host for host, *_ in HOSTS]


@pytest.mark.parametrize("mode", ["streaming", "blocking"])
def test_with_no_configuration_every_host_gets_its_own_requests(
    start_proxy: StartProxy, make_upstream: MakeUpstream, mode: str
) -> None:
    case = fixtures.case(f"chat_completions/copilot_vertex/{mode}")
    answer = Answer(200, [("content-type", case.content_type)], case.body)
    upstream = make_upstream(names=NAMES, handler=lambda _: answer)
    proxy = start_proxy(
        arguments=["-s", str(resolver.__file__)],
        env={"SCRIPTED_NAMES": json.dumps({name: [["127.0.0.1"]] for name in NAMES})},
    )
    for host, path, _, _ in HOSTS:
        client = RawHttp1(connect_through(proxy, host, upstream.port), f"{host}:{upstream.port}")
        client.request("POST", path, [BEARER], case.request)
        assert client.read_head().status == 200
        assert client.read_body() == case.body
        client.close()
    rows = wait_for_ended(proxy, len(HOSTS))
    told = [(row["provider_name"], row["provider"], row["status"], row["credential_hint"]) for row in rows]
    assert told == [(name, type_, "completed", "tid=...YmFy") for _, _, name, type_ in HOSTS]
    seen = [(request.authority, request.sni, request.target) for request in upstream.requests]
    assert seen == [(f"{host}:{upstream.port}", host, path) for host, path, _, _ in HOSTS]
    assert {request.body for request in upstream.requests} == {case.request}
    assert {request.header("authorization") for request in upstream.requests} == {f"Bearer {TOKEN}"}
