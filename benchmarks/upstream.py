"""A minimal provider. It sends each event of a stream in a packet of its own.

In lockstep, an event is sent when the client has seen the one before it, so the proxy never finds two in one read,
however fast or slow it is. Paced, every stream sends so many events a second, whether the client keeps up or not.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from benchmarks.traffic import Answer, Scenario

PHASES = 10
"""Paced streams do not all send in the same instant, but in so many groups, one after the other."""
BACKLOG = 2048

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_EXCHANGE = re.compile(rb"\r\nx-exchange: *(\d+)", re.IGNORECASE)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Upstream:
    def __init__(self) -> None:
        self.port = 0
        self.tls_port = 0
        """0: it does not speak TLS."""
        self.events_per_second: float | None = None
        """None: in lockstep with the client."""
        self.asked = b""
        """The body of the last request."""
        self.sent: dict[int, list[float]] = {}
        """When the events of each paced stream were sent, by `time.perf_counter`. `forget` removes them."""
        self._scenarios: dict[int, Scenario] = {}
        self._streams: dict[int, Iterator[bool]] = {}
        self._groups: list[set[int]] = []

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Answering(self), "127.0.0.1", 0, backlog=BACKLOG)
        self.port = server.sockets[0].getsockname()[1]
        servers = [server]
        if context is not None:
            server = await loop.create_server(lambda: _Answering(self), "127.0.0.1", 0, backlog=BACKLOG, ssl=context)
            self.tls_port = server.sockets[0].getsockname()[1]
            servers.append(server)
        try:
            yield self
        finally:
            for server in servers:
                server.close()

    @asynccontextmanager
    async def paced(self, events_per_second: float, phases: int = PHASES) -> AsyncIterator[None]:
        self.events_per_second = events_per_second
        self._groups = [set() for _ in range(phases)]
        ticking = asyncio.create_task(self._tick(1 / events_per_second / phases))
        try:
            yield
        finally:
            self.events_per_second = None
            self._groups = []
            self.sent.clear()
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking

    def expect(self, exchange: int, scenario: Scenario) -> None:
        self._scenarios[exchange] = scenario

    def forget(self, exchange: int) -> None:
        self._scenarios.pop(exchange, None)
        self.sent.pop(exchange, None)

    def scenario_of(self, exchange: int) -> Scenario | None:
        return self._scenarios.get(exchange)

    def stream(self, exchange: int, sending: Iterator[bool]) -> None:
        self._streams[exchange] = sending
        if self._groups:
            self.sent[exchange] = []
            self._groups[exchange % len(self._groups)].add(exchange)
        self.advance(exchange)

    def advance(self, exchange: int) -> None:
        """Send a stream's next event."""
        sending = self._streams.get(exchange)
        if sending is None:
            return
        if self._groups:
            self.sent[exchange].append(time.perf_counter())
        if next(sending, False) is False:
            del self._streams[exchange]
            if self._groups:
                self._groups[exchange % len(self._groups)].discard(exchange)

    async def _tick(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due, phase = loop.time(), 0
        while True:
            due += seconds
            await asyncio.sleep(max(0.0, due - loop.time()))
            phase = (phase + 1) % len(self._groups)
            for exchange in list(self._groups[phase]):
                self.advance(exchange)


class _Answering(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._received = bytearray()
        self._head = 0
        self._whole = 0  # bytes of a whole request, once its head has been read
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._whole:
            self._head = self._received.find(b"\r\n\r\n")
            length = _LENGTH.search(self._received, 0, self._head + 2)
            if self._head < 0 or length is None:
                return
            self._whole = self._head + 4 + int(length[1])
        if len(self._received) >= self._whole:
            request, head = bytes(self._received), self._head
            self._received, self._whole = bytearray(), 0
            self._answer(request[: head + 2], request[head + 4 :])

    def _answer(self, head: bytes, body: bytes) -> None:
        found = _EXCHANGE.search(head)
        assert found is not None and self._transport is not None
        exchange = int(found[1])
        scenario = self._upstream.scenario_of(exchange)
        if scenario is None or not head.startswith(f"POST {scenario.upstream_path}".encode()):
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        self._upstream.asked = body
        answer = scenario.answer_to(body)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: " + answer.content_type.encode()
        if answer.streaming:
            head += b"\r\nTransfer-Encoding: chunked\r\n\r\n"
            self._upstream.stream(exchange, _packets(self._transport, head, answer))
        else:
            self._transport.write(head + b"\r\nContent-Length: %d\r\n\r\n%s" % (len(answer.body), answer.body))


def _packets(transport: asyncio.Transport, head: bytes, answer: Answer) -> Iterator[bool]:
    """Send one packet at each step; each but the last step gives True."""
    last = len(answer.packets) - 1
    for number, packet in enumerate(answer.packets):
        transport.write((b"" if number else head) + chunk(packet) + (b"0\r\n\r\n" if number == last else b""))
        if number != last:
            yield True
