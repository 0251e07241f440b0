"""Clients that send the next request right after each answer, over keep-alive connections, and check every byte."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.traffic import Scenario
    from benchmarks.upstream import Upstream

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_exchanges = itertools.count(1)


@dataclass(slots=True)
class Tally:
    answered: int = 0
    wrong: int = 0
    """Answers that were not what the client is to receive, byte for byte, or that never came to their end."""
    seconds: float = 0.0
    first_byte_ms: list[float] = field(default_factory=list)
    answered_ms: list[float] = field(default_factory=list)
    """Until the last byte."""
    delays: list[tuple[float, float]] = field(default_factory=list)
    """Of each event of a paced stream: when it was received, by `time.perf_counter`, and seconds since it was sent."""


type Dial = Callable[[Callable[[], asyncio.Protocol], int], Awaitable[asyncio.BaseTransport]]
"""Open a connection to the proxy on a port."""


async def plainly(make: Callable[[], asyncio.Protocol], port: int) -> asyncio.BaseTransport:
    transport, _ = await asyncio.get_running_loop().create_connection(make, "127.0.0.1", port)
    return transport


async def load(
    port: int,
    scenario: Scenario,
    upstream: Upstream,
    *,
    count: int,
    connections: int,
    timeout: float,
    dial: Dial = plainly,
) -> Tally:
    """Have `count` requests answered through the proxy on `port`."""
    run = Run(scenario, upstream, count, connections)
    loop = asyncio.get_running_loop()
    started = loop.time()
    clients: list[asyncio.BaseTransport] = []
    try:
        async with asyncio.timeout(timeout):
            for _ in range(connections):
                clients.append(await dial(lambda: Client(run), port))
            await run.over.wait()
    except TimeoutError:
        run.give_up()
    finally:
        for transport in clients:
            transport.close()
    run.tally.seconds = loop.time() - started
    return run.tally


class Run:
    """What the clients of one load share."""

    def __init__(self, scenario: Scenario, upstream: Upstream, count: int, connections: int) -> None:
        self.scenario = scenario
        self.upstream = upstream
        self.tally = Tally()
        self.over = asyncio.Event()
        self._left = count
        self._count = count
        self._connections = connections

    def next_request(self) -> tuple[int, bytes] | None:
        if not self._left:
            return None
        self._left -= 1
        return self.request()

    def request(self) -> tuple[int, bytes]:
        """Return a new exchange's id, and its bytes."""
        exchange = next(_exchanges)
        self.upstream.expect(exchange, self.scenario)
        before, after = self.scenario.request_parts
        return exchange, b"%s%d%s" % (before, exchange, after)

    def answered(self, *, right: bool) -> None:
        if self.over.is_set():
            return
        self.tally.answered += 1
        self.tally.wrong += not right
        if self.tally.answered == self._count:
            self.over.set()

    def disconnected(self) -> None:
        self._connections -= 1
        if not self._connections:  # no connection is left for the remaining requests
            self.give_up()

    def give_up(self) -> None:
        if not self.over.is_set():
            self.tally.wrong += self._count - self.tally.answered
            self.over.set()


class Client(asyncio.Protocol):
    def __init__(self, run: Run) -> None:
        self._run = run
        self._streaming = run.scenario.answer.streaming
        self._lockstep = self._streaming and run.upstream.events_per_second is None
        self._received = bytearray()
        self._whole = 0  # bytes of a whole answer, where it says so
        self._events = 0
        self._exchange = 0
        self._asked_at: float | None = None  # None: nothing is asked
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked_at is not None:
            self._asked_at = None
            self._run.answered(right=False)
        self._run.disconnected()

    def data_received(self, data: bytes) -> None:
        if self._asked_at is None:
            return
        received = self._received
        if not received:
            self._run.tally.first_byte_ms.append((time.perf_counter() - self._asked_at) * 1000)
        searched = max(0, len(received) - 1)
        received += data
        if self._streaming:
            self._saw(received.count(b"\n\n", searched))
        if self._complete():
            self._run.upstream.forget(self._exchange)
            self._run.tally.answered_ms.append((time.perf_counter() - self._asked_at) * 1000)
            self._asked_at = None
            self._run.answered(right=self._right())
            self.ask()

    def _saw(self, events: int) -> None:
        upstream = self._run.upstream
        if self._lockstep:
            for _ in range(events):
                upstream.advance(self._exchange)
            return
        now, sent = time.perf_counter(), upstream.sent.get(self._exchange, [])
        seen = sent[self._events : self._events + events]
        self._run.tally.delays.extend((now, now - moment) for moment in seen)
        self._events += events

    def ask(self) -> None:
        """Send the run's next request, if it has one."""
        assert self._transport is not None
        request = self._run.next_request()
        if request is None:
            return
        self._exchange, data = request
        self._received = bytearray()
        self._whole = self._events = 0
        self._asked_at = time.perf_counter()
        self._transport.write(data)

    def _complete(self) -> bool:
        if self._streaming:
            return self._received.endswith(_LAST_CHUNK)
        if not self._whole:
            head, found, _ = self._received.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if not found or length is None:
                return False
            self._whole = len(head) + len(found) + int(length[1])
        return len(self._received) >= self._whole

    def _right(self) -> bool:
        head, _, body = bytes(self._received).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            return False
        return self._run.scenario.is_right(_unchunked(body) if self._streaming else body)


def _unchunked(data: bytes) -> bytes:
    pieces: list[bytes] = []
    start = 0
    while (line_end := data.find(b"\r\n", start)) >= 0:
        size = int(data[start:line_end], 16)
        start = line_end + 2
        pieces.append(data[start : start + size])
        start += size + 2
    return b"".join(pieces)
