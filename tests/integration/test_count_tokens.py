"""A client that counts the tokens of a request counts the injected tools, too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client
from tests.integration.turns import CONNECTED, INJECTED, Turns, call, configuration, own, text, tool_names
from tests.support.client import gateway_client
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

COUNTS = {"messages": (ANTHROPIC, "/v1/messages/count_tokens"), "responses": (OPENAI, "/v1/responses/input_tokens")}
BY_DIALECT = pytest.mark.parametrize("dialect", list(COUNTS))
COUNTED = {"input_tokens": 14}


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream()


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> RunningProxy:
    proxy = start_proxy(config=configuration(upstream.url, f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"))
    proxy.wait_for_log(CONNECTED)
    return proxy


def counted(body: bytes, **members: Any) -> bytes:
    """The same request as one that only counts."""
    request = json.loads(body) | members
    request.pop("max_tokens", None)
    return json.dumps(request).encode()


@BY_DIALECT
def test_a_count_has_the_tools_that_the_request_would_have_and_no_row(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    turns = Turns(dialect, [text("Hello.")])
    host, path = COUNTS[dialect]
    upstream.answer(Answer.json(COUNTED), Answer.json(turns.written[0].body))
    with Client(proxy, host, http2=False) as client:
        answer = client.post(path, counted(turns.request(streaming=False)))
        client.post(turns.path, turns.request(streaming=False))
    assert (answer.status, json.loads(answer.body)) == (200, COUNTED)
    count, request = upstream.requests
    assert count.path.endswith(path) and count.json()["tools"] == request.json()["tools"]
    assert "bmcp_ours_echo" in tool_names(count)
    assert len(proxy.rows("aibridge_interceptions")) == 1


def test_a_count_of_a_large_request_has_them_too(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    upstream.answer(Answer.json(COUNTED))
    body = counted(Turns("messages", [text("")]).request(streaming=False), system="x" * 3_000_000)
    with gateway_client(proxy, "/anthropic") as client:
        assert client.post(COUNTS["messages"][1], content=body).json() == COUNTED
    assert "bmcp_ours_echo" in tool_names(upstream.requests[0])


def test_a_count_has_the_hidden_turns_that_the_request_would_have(
    proxy: RunningProxy, upstream: ScriptedUpstream
) -> None:
    turns = Turns("messages", [call("echo", text="hidden"), own(path="a")])
    upstream.answer(*turns.answers(streaming=False), Answer.json(COUNTED))
    with Client(proxy, ANTHROPIC, http2=False) as client:
        answer = client.post(turns.path, turns.request(streaming=False)).body
        assert INJECTED not in answer
        client.post(COUNTS["messages"][1], counted(turns.next_request(answer, streaming=False)))
    assert b'"hidden"' in upstream.requests[1].body


@pytest.mark.parametrize(
    "members",
    [{"tool_choice": {"type": "none"}}, {"tools": []}, {"output_config": {"format": {"type": "json_schema"}}}],
)
def test_a_count_of_a_request_without_tools_of_ours_passes_as_it_is(
    proxy: RunningProxy, upstream: ScriptedUpstream, members: dict[str, Any]
) -> None:
    upstream.answer(Answer.json(COUNTED))
    body = counted(Turns("messages", [text("")]).request(streaming=False), **members)
    with Client(proxy, ANTHROPIC, http2=False) as client:
        client.post(COUNTS["messages"][1], body)
    assert upstream.requests[0].body == body


@pytest.mark.parametrize("body", [b"not JSON", b"[1]", b""])
def test_a_count_that_cannot_be_read_passes_as_it_is(
    proxy: RunningProxy, upstream: ScriptedUpstream, body: bytes
) -> None:
    upstream.answer(Answer.json(COUNTED))
    with Client(proxy, ANTHROPIC, http2=False) as client:
        assert client.post(COUNTS["messages"][1], body).status == 200
    assert upstream.requests[0].body == body
    assert proxy.rows("aibridge_interceptions") == []


def test_an_error_to_a_count_passes(proxy: RunningProxy, upstream: ScriptedUpstream) -> None:
    upstream.answer(Answer.json({"type": "error", "error": {"type": "rate_limit_error", "message": "later"}}, 429))
    with Client(proxy, ANTHROPIC, http2=False) as client:
        answer = client.post(COUNTS["messages"][1], counted(Turns("messages", [text("")]).request(streaming=False)))
    assert (answer.status, json.loads(answer.body)["error"]["message"]) == (429, "later")
