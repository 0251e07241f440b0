"""Providers that hold a body open behind its terminal event: the tools run at the event, and the next turn begins."""

from __future__ import annotations

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import Client
from tests.integration.turns import (
    BY_DIALECT,
    CONNECTED,
    VERSIONS,
    Asked,
    Turns,
    call,
    configuration,
    own,
    recorded,
    results,
    text,
)
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.upstream import HTTP1, HTTP2, Answer, Gate, Pause, ScriptedUpstream

BY_UPSTREAM = pytest.mark.parametrize("alpn", [HTTP1, HTTP2])


@pytest.fixture
def upstream(make_upstream: MakeUpstream, request: pytest.FixtureRequest) -> ScriptedUpstream:
    callspec = getattr(request.node, "callspec", None)
    return make_upstream(alpn=[callspec.params.get("alpn", HTTP1) if callspec is not None else HTTP1])


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> RunningProxy:
    servers = f"keepalive_interval: 0.2\nservers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, servers))
    proxy.wait_for_log(CONNECTED)
    return proxy


@VERSIONS
@BY_UPSTREAM
@BY_DIALECT
def test_the_next_turn_begins_while_the_last_ones_body_is_held_open(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str, alpn: str, http2: bool
) -> None:
    turns = Turns(dialect, *([text(f"{n}. "), call("echo", text=str(n))] for n in range(2)), [text("Done.")])
    gates = [Gate() for _ in range(3)]
    trailing = b": behind the end\n\n"
    upstream.answer(
        *(Answer.event_stream(*turns.events(n), Pause(gate), trailing) for n, gate in enumerate(gates[:2])),
        Answer.event_stream(*turns.events(2), Pause(gates[2])),
    )
    with Client(proxy, turns.host, http2=http2) as client:
        asked = Asked(client, turns.path, turns.request(streaming=True))
        assert asked.status() == 200
        ends = {"messages": b"message_stop", "chat_completions": b"[DONE]", "responses": b"response.completed"}
        answer = asked.until(ends[dialect])
        rows = recorded(proxy)
        assert rows.outcome == ("completed", 3, None) and len(rows.injected) == 2
        for gate in gates:
            gate.open()
        answer += asked.rest()
    turns.check_usage(turns.check(answer, streaming=True))
    assert b"behind the end" not in answer
    assert [results(request) for request in upstream.requests[1:]] == [["0"], ["0", "1"]]


@BY_DIALECT
def test_a_connection_whose_body_has_ended_is_used_again(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    turns = Turns(dialect, [text("0. "), call("echo", text="hi")], [text("Done.")])
    upstream.answer(*turns.answers(streaming=True))
    with Client(proxy, turns.host) as client:
        turns.check(client.post(turns.path, turns.request(streaming=True)).body, streaming=True)
    assert len({request.connection for request in upstream.requests}) == 1


@BY_DIALECT
def test_a_mixed_turn_ends_for_the_client_while_the_body_is_held_open(
    proxy: RunningProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    turns = Turns(dialect, [text("0. "), call("echo", text="hi"), own(path="a")])
    gate = Gate()
    upstream.answer(Answer.event_stream(*turns.events(0), Pause(gate)))
    with Client(proxy, turns.host) as client:
        asked = Asked(client, turns.path, turns.request(streaming=True))
        assert asked.status() == 200
        ends = {"messages": b"message_stop", "chat_completions": b"[DONE]", "responses": b"response.completed"}
        answer = asked.until(ends[dialect])
        assert recorded(proxy).outcome == ("completed", 1, None)
        gate.open()
        turns.check(answer + asked.rest(), streaming=True)


@BY_UPSTREAM
def test_a_client_that_leaves_while_a_body_is_held_open_leaves_nothing_behind(
    proxy: RunningProxy, upstream: ScriptedUpstream, alpn: str
) -> None:
    turns = Turns("messages", [text("0. "), call("echo", text="hi")], [text("Done.")])
    gate, next_gate = Gate(), Gate()
    upstream.answer(
        Answer.event_stream(*turns.events(0), Pause(gate)), Answer.event_stream(turns.events(1)[0], Pause(next_gate))
    )
    with Client(proxy, turns.host) as client:
        asked = Asked(client, turns.path, turns.request(streaming=True))
        asked.status()
        next_gate.wait_reached()
        asked.leave()
    upstream.wait_for_disconnects(2)
    gate.open()
    next_gate.open()
