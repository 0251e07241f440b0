"""A client that asks everything on one HTTP/2 connection, several requests at a time, and checks every byte."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events

from benchmarks.client import Dial, Run

if TYPE_CHECKING:
    from benchmarks.traffic import Scenario
    from benchmarks.upstream import Upstream

WINDOW = 2**24


async def load_h2(
    port: int, scenario: Scenario, upstream: Upstream, dial: Dial, count: int, at_once: int, timeout: float
) -> int:
    """Have `count` requests answered through the proxy on `port`, and return how many answers were wrong."""
    run = Run(scenario, upstream, count, connections=1)
    client = _Client(run, at_once)
    transport = await dial(lambda: client, port)
    try:
        async with asyncio.timeout(timeout):
            await run.over.wait()
    except TimeoutError:
        run.give_up()
    finally:
        transport.close()
    return run.tally.wrong


@dataclass(slots=True)
class _Stream:
    exchange: int
    status: bytes = b""
    received: bytearray = field(default_factory=bytearray)


class _Client(asyncio.Protocol):
    def __init__(self, run: Run, at_once: int) -> None:
        self._run = run
        self._at_once = at_once
        self._streams: dict[int, _Stream] = {}
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self._h2 = h2.connection.H2Connection(config)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(WINDOW)
        for _ in range(self._at_once):
            self._ask()
        transport.write(self._h2.data_to_send())

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.disconnected()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        for event in self._h2.receive_data(data):
            self._handle(event)
        self._transport.write(self._h2.data_to_send())

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self._streams[event.stream_id].status = dict(event.headers)[b":status"]
        elif isinstance(event, h2.events.DataReceived):
            stream = self._streams[event.stream_id]
            searched = max(0, len(stream.received) - 1)
            stream.received += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if self._run.scenario.answer.streaming:
                for _ in range(stream.received.count(b"\n\n", searched)):
                    self._run.upstream.advance(stream.exchange)
        elif isinstance(event, h2.events.StreamEnded):
            self._end(self._streams.pop(event.stream_id), whole=True)
        elif isinstance(event, h2.events.StreamReset):
            self._end(self._streams.pop(event.stream_id), whole=False)

    def _end(self, stream: _Stream, *, whole: bool) -> None:
        self._run.upstream.forget(stream.exchange)
        right = whole and stream.status == b"200" and self._run.scenario.is_right(bytes(stream.received))
        self._run.answered(right=right)
        self._ask()

    def _ask(self) -> None:
        asked = self._run.next_request()
        if asked is None:
            return
        exchange, request = asked
        head, _, body = request.partition(b"\r\n\r\n")
        _, *lines = head.split(b"\r\n")
        fields = [line.partition(b": ")[::2] for line in lines]
        number = self._h2.get_next_available_stream_id()
        pseudo = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", b"api.anthropic.com"),
            (b":path", self._run.scenario.path.encode()),
        ]
        self._h2.send_headers(number, pseudo + [(name.lower(), value) for name, value in fields if name != b"Host"])
        self._h2.send_data(number, body, end_stream=True)
        self._streams[number] = _Stream(exchange)
