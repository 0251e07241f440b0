"""Many answers of an HTTP/1.1 upstream at once for one HTTP/2 client: each has its own connection, up to a limit."""

from __future__ import annotations

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.answers import BEGUN, PATH, REQUEST, SIMPLE, config, held
from tests.integration.exchanges import ANTHROPIC
from tests.support.client_h2 import RawHttp2
from tests.support.upstream import HTTP1, Gate, ScriptedUpstream


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP1])


def begin(client: RawHttp2) -> int:
    return client.request("POST", PATH, [(b"content-length", b"%d" % len(REQUEST))], REQUEST)


def read_beginning(client: RawHttp2, stream: int) -> None:
    assert client.read_head(stream)[0] == 200
    body = b""
    while len(body) < len(BEGUN):
        body += client.read_data(stream)
    assert body == BEGUN


def test_more_than_five_answers_run_at_once(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=config(upstream.port))
    gate = Gate()
    upstream.answer(*[held(gate) for _ in range(12)])
    with RawHttp2.through_proxy(proxy, ANTHROPIC, 443) as client:
        streams = [begin(client) for _ in range(12)]
        for stream in streams:
            read_beginning(client, stream)
        gate.open()
        for stream in streams:
            assert BEGUN + client.read_body(stream) == SIMPLE.body


def test_beyond_the_limit_an_answer_waits_for_another_ones_end(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    proxy = start_proxy(config=config(upstream.port, "limits: {upstream_connections: 2}"))
    gates = [Gate(), Gate(), Gate()]
    upstream.answer(*map(held, gates))
    with RawHttp2.through_proxy(proxy, ANTHROPIC, 443) as client:
        first, second, third = [begin(client) for _ in range(3)]
        read_beginning(client, first)
        read_beginning(client, second)
        assert len(upstream.requests) == 2
        gates[0].open()
        assert BEGUN + client.read_body(first) == SIMPLE.body
        read_beginning(client, third)
        for gate in gates[1:]:
            gate.open()
        for stream in (second, third):
            assert BEGUN + client.read_body(stream) == SIMPLE.body
