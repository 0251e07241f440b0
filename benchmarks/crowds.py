"""Many clients at once: streams that each say little, and connections that say nothing."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass

from benchmarks import proxies, traffic
from benchmarks.client import Client, Run, load, plainly
from benchmarks.measures import WrongAnswer
from benchmarks.proxies import Proxy
from benchmarks.report import Result
from benchmarks.stage import Stage
from benchmarks.upstream import Upstream
from tests.support.database import query

STREAMS = 500
EVENTS_PER_SECOND = 20.0
SECONDS, QUICK_SECONDS = 60.0, 8.0
PHASES = 50
ENDED_WITHIN = 180.0
"""Seconds after which a stream that has not ended is lost."""
WARM_UP = 32
IDLE, QUICK_IDLE = 1_000, 200


@dataclass(frozen=True)
class Crowd:
    p50_ms: float
    p99_ms: float
    wrong: int
    cores: float
    rss_mb: float
    """What it has more while the streams are open."""
    events: int


async def streams(stage: Stage) -> list[Result]:
    """Measure how late events of many streams are, and whether one is lost."""
    seconds = QUICK_SECONDS if stage.plan.quick else SECONDS
    with proxies.running(stage.folder("streams"), stage.upstream.port) as both:
        bare, ours = [await _crowd(stage, proxy, seconds) for proxy in (both.bare, both.ours)]
        sql = "select count(*) as rows from aibridge_interceptions where status = 'completed'"
        [completed] = query(both.ours.mitmdump.database, sql)
    lost = max(ours.wrong, abs(STREAMS + WARM_UP - completed["rows"]))
    name = f"{STREAMS} streams × {EVENTS_PER_SECOND:.0f} events/s for {seconds:.0f} s"
    return [
        Result(
            f"{name}, lost",
            "",
            lost,
            bare=bare.wrong,
            bar=0,
            detail=f"{completed['rows'] - WARM_UP} completed rows, {ours.events:,} events",
        ),
        Result(f"{name}, delay of an event, p50", "ms", ours.p50_ms, bare=bare.p50_ms),
        Result(f"{name}, delay of an event, p99", "ms", ours.p99_ms, bare=bare.p99_ms),
        Result(f"{name}, CPU", "cores", ours.cores, bare=bare.cores, ratio=ours.cores / bare.cores),
        Result(
            f"{name}, memory",
            "MB",
            ours.rss_mb,
            bare=bare.rss_mb,
            detail=f"{1000 * ours.rss_mb / STREAMS:.0f} KB of a stream",
            values={"stream_kb": 1000 * ours.rss_mb / STREAMS},
        ),
    ]


async def _crowd(stage: Stage, proxy: Proxy, seconds: float) -> Crowd:
    upstream = stage.upstream
    stage.say(f"{STREAMS} streams through {proxy.name} for {seconds:.0f} s")
    warm = await load(proxy.port, traffic.MESSAGES, upstream, count=WARM_UP, connections=WARM_UP, timeout=ENDED_WITHIN)
    if warm.wrong:
        raise WrongAnswer(f"{warm.wrong} answers through {proxy.name} were wrong before the measurement")
    rss = proxy.rss_bytes()
    scenario = traffic.long_messages(int(seconds * EVENTS_PER_SECOND))
    async with upstream.paced(EVENTS_PER_SECOND, PHASES):
        loading = asyncio.create_task(
            load(proxy.port, scenario, upstream, count=STREAMS, connections=STREAMS, timeout=seconds + ENDED_WITHIN)
        )
        await asyncio.sleep(seconds / 4)
        cpu = proxy.cpu_now()
        await asyncio.sleep(seconds / 2)
        cpu, grown = proxy.cpu_now() - cpu, proxy.rss_bytes() - rss
        tally = await loading
    await proxy.cpu_seconds()
    percentiles = statistics.quantiles([1000 * delay for _, delay in tally.delays], n=100)
    return Crowd(percentiles[49], percentiles[98], tally.wrong, cpu / (seconds / 2), grown / 2**20, len(tally.delays))


async def idle(stage: Stage) -> list[Result]:
    """Measure memory and descriptors of connections that are kept, and whether each still works afterwards."""
    count = QUICK_IDLE if stage.plan.quick else IDLE
    with proxies.running(stage.folder("idle"), stage.upstream.port) as both:
        bare, ours = [await _kept(stage, proxy, count) for proxy in (both.bare, both.ours)]
    name = f"{count:,} idle connections"
    return [
        Result(f"{name}, that still work", "", ours[2], bare=bare[2], detail="each is asked once more"),
        Result(f"{name}, lost", "", count - ours[2], bar=0),
        Result(
            f"{name}, memory",
            "MB",
            ours[0],
            bare=bare[0],
            detail=f"{1000 * ours[0] / count:.0f} KB of a connection",
            values={"idle_kb": 1000 * ours[0] / count},
        ),
        Result(f"{name}, descriptors", "", ours[1], bare=bare[1], values={"descriptors": ours[1] / count}),
    ]


async def _kept(stage: Stage, proxy: Proxy, count: int) -> tuple[float, int, int]:
    """Return megabytes, descriptors, and how many connections answered at the end."""
    stage.say(f"{count} idle connections through {proxy.name}")
    await load(proxy.port, traffic.SMALL, stage.upstream, count=300, connections=1, timeout=ENDED_WITHIN)
    await proxy.cpu_seconds()
    rss, descriptors = proxy.rss_bytes(), proxy.descriptors()
    runs = [_Once(stage.upstream) for _ in range(count)]
    clients = [Client(run) for run in runs]
    transports = []
    async with asyncio.timeout(ENDED_WITHIN):
        for client, run in zip(clients, runs, strict=True):
            transports.append(await plainly(lambda client=client: client, proxy.port))  # type: ignore[misc]
            await run.once.wait()
    await proxy.cpu_seconds()
    grown, opened = (proxy.rss_bytes() - rss) / 2**20, proxy.descriptors() - descriptors
    for client, run in zip(clients, runs, strict=True):
        run.once.clear()
        run.asks = True
        client.ask()
    try:
        async with asyncio.timeout(ENDED_WITHIN):
            await asyncio.gather(*(run.once.wait() for run in runs))
    except TimeoutError:
        pass  # those that do not answer are lost
    for transport in transports:
        transport.close()
    return grown, opened, sum(run.tally.answered == 2 and not run.tally.wrong for run in runs)


class _Once(Run):
    """A connection that asks once, and once more when `asks` is set."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__(traffic.SMALL, upstream, count=2, connections=1)
        self.asks = True
        self.once = asyncio.Event()

    def next_request(self) -> tuple[int, bytes] | None:
        if not self.asks:
            return None
        self.asks = False
        return super().next_request()

    def answered(self, *, right: bool) -> None:
        super().answered(right=right)
        self.once.set()
