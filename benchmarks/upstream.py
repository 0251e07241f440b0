"""A minimal provider for the current scenario. It sends each event of a stream in a packet of its own.

In lockstep, an event is sent when the client has seen the one before it, so the proxy never finds two in one read,
however fast or slow it is. Paced, every stream sends so many events a second, whether the client keeps up or not.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.traffic import Answer, Scenario

PHASES = 10
"""Paced streams do not all send in the same instant, but in so many groups, one after the other."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_EXCHANGE = re.compile(rb"\r\nx-exchange: *(\d+)", re.IGNORECASE)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Upstream:
    def __init__(self) -> None:
        self.port = 0
        self.scenario: Scenario | None = None
        self.events_per_second: float | None = None
        """None: in lockstep with the client."""
        self.asked = b""
        """The body of the last request."""
        self._streams: dict[int, Iterator[bool]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Upstream]:
        server = await asyncio.get_running_loop().create_server(lambda: _Answering(self), "127.0.0.1", 0, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    @asynccontextmanager
    async def paced(self, events_per_second: float) -> AsyncIterator[None]:
        self.events_per_second = events_per_second
        ticking = asyncio.create_task(self._tick(1 / events_per_second / PHASES))
        try:
            yield
        finally:
            self.events_per_second = None
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking

    def stream(self, exchange: int, sending: Iterator[bool]) -> None:
        self._streams[exchange] = sending
        self.advance(exchange)

    def advance(self, exchange: int) -> None:
        """Send a stream's next event."""
        sending = self._streams.get(exchange)
        if sending is not None and next(sending, False) is False:
            del self._streams[exchange]

    async def _tick(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due, phase = loop.time(), 0
        while True:
            due += seconds
            await asyncio.sleep(max(0.0, due - loop.time()))
            phase = (phase + 1) % PHASES
            for exchange in [number for number in self._streams if number % PHASES == phase]:
                self.advance(exchange)


class _Answering(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if found and length is not None and len(rest) >= int(length[1]):
            self._received = b""
            self._answer(head, rest)

    def _answer(self, head: bytes, body: bytes) -> None:
        scenario, exchange = self._upstream.scenario, _EXCHANGE.search(head)
        assert scenario is not None and exchange is not None and self._transport is not None
        if not head.startswith(f"POST {scenario.upstream_path} ".encode()):
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        self._upstream.asked = body
        answer = scenario.answer_to(body)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: " + answer.content_type.encode()
        if answer.streaming:
            head += b"\r\nTransfer-Encoding: chunked\r\n\r\n"
            self._upstream.stream(int(exchange[1]), _packets(self._transport, head, answer))
        else:
            self._transport.write(head + b"\r\nContent-Length: %d\r\n\r\n%s" % (len(answer.body), answer.body))


def _packets(transport: asyncio.Transport, head: bytes, answer: Answer) -> Iterator[bool]:
    """Send one packet at each step; each but the last step gives True."""
    last = len(answer.packets) - 1
    for number, packet in enumerate(answer.packets):
        transport.write((b"" if number else head) + chunk(packet) + (b"0\r\n\r\n" if number == last else b""))
        if number != last:
            yield True
