"""The measurements. Each runs its load through both proxies in turn, and compares round by round."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks import traffic
from benchmarks.client import Dial, Tally, load, plainly
from benchmarks.proxies import Proxies, Proxy
from benchmarks.report import Result
from benchmarks.traffic import Scenario
from benchmarks.upstream import Upstream
from tests.support.database import Row, Table

REQUEST_BAR = 1.15
GROWTH_BAR_MB = 5.0
LOAD_TIMEOUT = 300.0
"""Seconds in which any load is over, or counts as lost."""

STREAMS = 200
EVENTS_PER_SECOND = 50.0


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    warm_up: int = 2_000
    rounds: int = 10
    requests: int = 1_000
    """Of one round, through one proxy."""
    streams: int = 64
    connections: int = 16
    first_bytes: int = 200
    turn_rounds: int = 40
    quick: bool = False
    minutes: float = 60.0
    """Of the soak."""

    @property
    def all_requests(self) -> int:
        return self.rounds * self.requests


QUICK = Plan(warm_up=300, rounds=3, requests=300, streams=32, first_bytes=100, turn_rounds=10, quick=True)


class WrongAnswer(Exception):
    """A client did not receive what the upstream had sent, so nothing that was measured counts."""


class Bench:
    def __init__(self, proxies: Proxies, upstream: Upstream, plan: Plan, say: Callable[[str], None]) -> None:
        self._proxies = proxies
        self._upstream = upstream
        self._plan = plan
        self._say = say

    async def requests(self) -> list[Result]:
        """CPU of a small JSON answer; and, since these are as many as it takes, what memory they leave behind."""
        plan, count = self._plan, self._plan.requests
        self._say(f"warm-up: {plan.warm_up} requests through each")
        for proxy in self._proxies.in_turn(0):
            await self._load(proxy, traffic.SMALL, plan.warm_up)
        before = [proxy.rss_bytes() for proxy in self._proxies.in_turn(0)]
        cpu = await self._cpu_rounds(traffic.SMALL, count, per=count)
        grown = [(proxy.rss_bytes() - rss) / 2**20 for proxy, rss in zip(self._proxies.in_turn(0), before, strict=True)]
        after = self._proxies.ours.rss_bytes() / 2**20
        memory = Result(
            f"RSS growth over {plan.all_requests:,} requests",
            "MB",
            bare=grown[0],
            ours=grown[1],
            bar=GROWTH_BAR_MB,
            detail=f"ours is at {after:.0f} MB",
        )
        return [compared_rounds("CPU per request: " + traffic.SMALL.name, "µs", cpu, REQUEST_BAR), memory]

    async def chunks(self, scenario: Scenario) -> Result:
        """CPU of one event of a stream, each in a packet of its own; a 300th of what an answer costs."""
        streams = self._plan.streams
        await self._warm_up(scenario)
        cpu = await self._cpu_rounds(scenario, streams, per=streams * traffic.EVENTS)
        return compared_rounds("CPU per chunk: " + scenario.name, "µs", cpu, scenario.bar)

    async def first_byte(self) -> list[Result]:
        """Time until the client has the answer's first byte, one request at a time: no queue but the proxy's own."""
        plan = self._plan
        times: dict[str, list[float]] = {"bare": [], "ours": []}
        for number in range(plan.rounds):
            self._say(f"first byte, round {number + 1} of {plan.rounds}")
            for proxy in self._proxies.in_turn(number):
                tally = await self._load(proxy, traffic.SMALL, plan.first_bytes, connections=1)
                times[proxy.name] += tally.first_byte_ms
        bare, ours = (statistics.quantiles(times[name], n=100) for name in ("bare", "ours"))
        return [_compared(f"time to first byte, p{p}", "ms", bare[p - 1], ours[p - 1]) for p in (50, 99)]

    async def loss(self) -> Result:
        """Many streams at once: every client receives every byte, and every stream has its rows."""
        self._say(f"{STREAMS} streams of {traffic.EVENTS} events, {EVENTS_PER_SECOND:.0f} events/s each")
        ours, seen = self._proxies.ours, len(self._rows("aibridge_interceptions"))
        tokens_seen = len(self._rows("aibridge_token_usages"))
        async with self._upstream.paced(EVENTS_PER_SECOND):
            tally = await load(
                ours.port, traffic.MESSAGES, self._upstream, count=STREAMS, connections=STREAMS, timeout=LOAD_TIMEOUT
            )
        await ours.cpu_seconds()
        rows = self._rows("aibridge_interceptions")[seen:]
        completed = sum(row["status"] == "completed" for row in rows)
        tokens = len(self._rows("aibridge_token_usages")) - tokens_seen
        lost = max(tally.wrong, abs(STREAMS - completed), abs(STREAMS - len(rows)), abs(STREAMS - tokens))
        ideal = (traffic.EVENTS - 1) / EVENTS_PER_SECOND
        return Result(
            f"lost of {STREAMS} streams × {EVENTS_PER_SECOND:.0f} events/s",
            "",
            ours=lost,
            bar=0,
            detail=f"{STREAMS - tally.wrong} whole answers, {completed} completed rows, {tokens} token rows; "
            f"{tally.seconds:.1f} s for {ideal:.1f} s of events",
        )

    # --- how a load is put on -------------------------------------------------------------------------------------

    async def _warm_up(self, scenario: Scenario) -> None:
        for proxy in self._proxies.in_turn(0):
            await self._load(proxy, scenario, self._plan.connections)

    async def _cpu_rounds(self, scenario: Scenario, count: int, *, per: int) -> list[tuple[float, float]]:
        """CPU of (bare, ours) in each round, in microseconds, divided by `per`."""

        async def once(proxy: Proxy) -> None:
            await self._load(proxy, scenario, count)

        return await self._rounds(scenario.name, once, per=per)

    async def _rounds(
        self, name: str, once: Callable[[Proxy], Awaitable[None]], *, per: int
    ) -> list[tuple[float, float]]:
        rounds: list[tuple[float, float]] = []
        for number in range(self._plan.rounds):
            self._say(f"{name}, round {number + 1} of {self._plan.rounds}")
            used: dict[str, float] = {}
            for proxy in self._proxies.in_turn(number):
                before = await proxy.cpu_seconds()
                await once(proxy)
                used[proxy.name] = (await proxy.cpu_seconds() - before) * 1e6 / per
            rounds.append((used[self._proxies.bare.name], used[self._proxies.ours.name]))
        return rounds

    def _dial(self, proxy: Proxy) -> Dial:
        """Return how clients connect to a proxy."""
        return plainly

    async def _load(self, proxy: Proxy, scenario: Scenario, count: int, *, connections: int = 0) -> Tally:
        tally = await load(
            proxy.port,
            scenario,
            self._upstream,
            count=count,
            connections=connections or self._plan.connections,
            timeout=LOAD_TIMEOUT,
            dial=self._dial(proxy),
        )
        if tally.wrong:
            raise WrongAnswer(f"{tally.wrong} of {count} answers through {proxy.name} were wrong ({scenario.name})")
        return tally

    def _rows(self, table: Table) -> list[Row]:
        return self._proxies.ours.mitmdump.rows(table)


def _compared(name: str, unit: str, bare: float, ours: float) -> Result:
    return Result(name, unit, bare=bare, ours=ours, ratio=ours / bare)


def compared_rounds(name: str, unit: str, rounds: Sequence[tuple[float, float]], bar: float | None = None) -> Result:
    """The median of the rounds' ratios: each compares two loads that ran one after the other."""
    ratios = [ours / bare for bare, ours in rounds]
    return Result(
        name,
        unit,
        bare=statistics.median(bare for bare, _ in rounds),
        ours=statistics.median(ours for _, ours in rounds),
        ratio=statistics.median(ratios),
        bar=bar,
        detail=f"{len(rounds)} rounds, {min(ratios):.2f}–{max(ratios):.2f}",
    )
