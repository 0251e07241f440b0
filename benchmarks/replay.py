"""A load as a fleet of developers makes it, on one host, without their pauses.

Requests arrive at the rate of a fleet, and not in a closed loop: where the proxy is slow, streams pile up. Each belongs
to a session that is idle: its conversation grows with every request, and begins anew when it is long. Every answer is a
stream that is paced as a model writes. So N sessions stand for many more developers, most of whom read or type.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import traffic
from benchmarks.client import Client, Run, Tally, plainly
from benchmarks.conversation import conversation
from benchmarks.fleet_model import ASSUMED, Assumptions
from benchmarks.measures import WrongAnswer
from benchmarks.proxies import Proxy
from benchmarks.traffic import Scenario
from benchmarks.upstream import Upstream

ENDED_WITHIN = 120.0
PHASES = 50


@dataclass(frozen=True)
class Replayed:
    """What a proxy did for the requests of a time."""

    seconds: float
    requests: float
    """Answered, in that time."""
    events: float
    cpu_seconds: float
    delay_p50_ms: float
    delay_p99_ms: float
    sessions: int
    """Connections that were open at the same time."""

    @property
    def cores(self) -> float:
        return self.cpu_seconds / self.seconds


class Session(Run):
    """A conversation on a connection of its own. `over` is set while it waits for its next request."""

    def __init__(self, upstream: Upstream, tally: Tally, requests: Iterator[Scenario]) -> None:
        super().__init__(traffic.MESSAGES, upstream, count=0, connections=1)
        self.tally = tally
        self.broken = False
        self._requests = requests
        self.over.set()

    def next_request(self) -> tuple[int, bytes] | None:
        if self.over.is_set():
            return None
        self.scenario = next(self._requests)
        return self.request()

    def answered(self, *, right: bool) -> None:
        self.over.set()
        self.tally.answered += 1
        self.tally.wrong += not right

    def disconnected(self) -> None:
        self.broken = True


class Replay:
    def __init__(self, proxy: Proxy, upstream: Upstream, assumed: Assumptions = ASSUMED) -> None:
        self._proxy = proxy
        self._upstream = upstream
        self._assumed = assumed
        self._tally = Tally()
        self._idle: list[tuple[Session, Client]] = []
        self._all: list[tuple[Session, asyncio.BaseTransport]] = []

    async def run(self, requests_per_second: float, seconds: float) -> Replayed:
        """Measure for so many seconds, after as many streams are open as there will be."""
        assumed = self._assumed
        async with self._upstream.paced(assumed.events_per_second, PHASES):
            arriving = asyncio.create_task(self._arrive(requests_per_second))
            try:
                await asyncio.sleep(assumed.events_per_answer / assumed.events_per_second + 2)
                found = await self._measured(seconds)
            finally:
                arriving.cancel()
                await asyncio.gather(arriving, return_exceptions=True)
            async with asyncio.timeout(ENDED_WITHIN):
                await asyncio.gather(*(session.over.wait() for session, _ in self._all))
        for _, transport in self._all:
            transport.close()
        if self._tally.wrong:
            raise WrongAnswer(f"{self._tally.wrong} of {self._tally.answered} answers of the replay were wrong")
        return found

    async def _measured(self, seconds: float) -> Replayed:
        loop, tally = asyncio.get_running_loop(), self._tally
        began, cpu, answered, events = loop.time(), self._proxy.cpu_now(), tally.answered, len(tally.delays)
        await asyncio.sleep(seconds)
        delays = [1000 * delay for _, delay in tally.delays[events:]]
        percentiles = statistics.quantiles(delays, n=100) if len(delays) > 1 else [0.0] * 99
        return Replayed(
            loop.time() - began,
            tally.answered - answered,
            len(delays),
            self._proxy.cpu_now() - cpu,
            percentiles[49],
            percentiles[98],
            len(self._all),
        )

    async def _arrive(self, requests_per_second: float) -> None:
        loop = asyncio.get_running_loop()
        due, number = loop.time(), 0
        while True:
            due += 1 / requests_per_second
            await asyncio.sleep(max(0.0, due - loop.time()))
            session, client = self._take() or await self._open(number)
            session.over.clear()
            number += 1
            client.ask()

    def _take(self) -> tuple[Session, Client] | None:
        """Return the session that has been idle for the longest time."""
        for place, (session, client) in enumerate(self._idle):
            if session.over.is_set() and not session.broken:
                del self._idle[place]
                self._idle.append((session, client))
                return session, client
        return None

    async def _open(self, number: int) -> tuple[Session, Client]:
        session = Session(self._upstream, self._tally, conversation(self._assumed, number))
        client = Client(session)
        self._all.append((session, await plainly(lambda: client, self._proxy.port)))
        self._idle.append((session, client))
        return session, client
