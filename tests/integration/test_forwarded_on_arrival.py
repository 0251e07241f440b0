"""Without TLS on either side, mitmproxy's server does not see the packets of a streamed answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from mitmproxy import http

from aibridge_addon.addon import AIBridge
from aibridge_addon.proxy.stream.short_way import SWITCH, PlainServer, ShortWay
from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import wait_for_ended
from tests.support import fixtures
from tests.support.client import RawHttp1
from tests.support.polling import poll_until
from tests.support.script import Gate, Pause
from tests.support.upstream import Answer

STREAM = fixtures.case("messages/simple/streaming")
EVENTS = [event + b"\n\n" for event in STREAM.body.split(b"\n\n") if event]


class Ways:
    """The bytes that take the short way, and those of them that mitmproxy's server has read before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forwarded = bytearray()
        self.read = bytearray()
        forward, take = ShortWay.forward, ShortWay.take

        def forwarded(way: ShortWay, data: bytes) -> object:
            self.forwarded += data
            return forward(way, data)

        def taken(way: ShortWay, event: object) -> object:
            self.read += event.data  # type: ignore[attr-defined]
            return take(way, event)  # type: ignore[arg-type]

        monkeypatch.setattr(ShortWay, "forward", forwarded)
        monkeypatch.setattr(ShortWay, "take", taken)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    monkeypatch.delenv(SWITCH, raising=False)
    return Ways(monkeypatch)


def paced(events: Sequence[bytes]) -> tuple[list[bytes | Pause], list[Gate]]:
    """The steps of an answer that waits after each event."""
    gates = [Gate() for _ in events]
    return [step for event, gate in zip(events, gates, strict=True) for step in (event, Pause(gate))], gates


@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "TLS"])
def test_packets_are_forwarded_on_arrival_where_neither_side_has_tls(
    make_upstream: MakeUpstream, start_proxy: StartProxy, ways: Ways, has_tls: bool
) -> None:
    upstream = make_upstream(alpn=["http/1.1"]) if has_tls else make_upstream(authority=None)
    url = upstream.url
    proxy = start_proxy(config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{url}'}}]")
    steps, gates = paced(EVENTS)
    upstream.answer(Answer.event_stream(*steps))
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        client.request("POST", "/anthropic/v1/messages", [("x-api-key", "k")], STREAM.request)
        assert client.read_head().status == 200
        received = b""
        for gate in gates[:-1]:
            received += client.read_body_chunk()
            gate.open()
        gates[-1].open()
        received += client.read_body()
    assert received == STREAM.body
    assert EVENTS[2] in ways.forwarded
    assert (EVENTS[2] in ways.read) is has_tls
    (row,) = wait_for_ended(proxy, 1)
    assert row["status"] == "completed"


def test_a_flow_that_is_kept_keeps_nothing_of_a_connection_that_has_ended(
    make_upstream: MakeUpstream, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mitmweb and the console keep flows."""
    kept: list[http.HTTPFlow] = []
    respond = AIBridge.response

    def keep(addon: AIBridge, flow: http.HTTPFlow) -> object:
        kept.append(flow)
        return respond(addon, flow)

    monkeypatch.setattr(AIBridge, "response", keep)
    upstream = make_upstream(authority=None)
    proxy = start_proxy(config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]")
    upstream.answer(Answer.event_stream(*EVENTS))
    with RawHttp1.connect("127.0.0.1", proxy.port) as client:
        client.request("POST", "/anthropic/v1/messages", [("x-api-key", "k")], STREAM.request)
        assert client.read_head().status == 200
        client.read_body()
    server = kept[0].server_conn
    assert isinstance(server, PlainServer)
    poll_until(lambda: server.arrivals is None, what="nothing of the connection")
