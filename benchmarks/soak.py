"""The same moderate load for an hour: memory must not grow."""

from __future__ import annotations

import asyncio
import statistics

from benchmarks import proxies
from benchmarks.replay import Replay
from benchmarks.report import Result
from benchmarks.stage import Stage

REQUESTS_PER_SECOND = 5.0
"""Streams of conversations: what 850 developers of a large organisation ask for."""
SAMPLES = 240
GROWTH_BAR_MB = 10.0
"""Between the second quarter of the time and the last one: at first, caches fill up."""


async def measure(stage: Stage) -> list[Result]:
    seconds = stage.plan.minutes * 60
    with proxies.running(stage.folder("soak"), stage.upstream.port) as both:
        stage.say(f"soak: {REQUESTS_PER_SECOND:.0f} requests/s for {stage.plan.minutes:g} minutes")
        running = asyncio.create_task(Replay(both.ours, stage.upstream).run(REQUESTS_PER_SECOND, seconds))
        memory: list[float] = []
        for number in range(SAMPLES):
            done, _ = await asyncio.wait([running], timeout=seconds / SAMPLES)
            if done:
                break
            memory.append(both.ours.rss_bytes() / 2**20)
            if number % (SAMPLES // 20) == 0:
                stage.say(f"soak: {memory[-1]:.0f} MB")
        replayed = await running
    quarter = len(memory) // 4
    early, late = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    return [
        Result(
            f"soak of {stage.plan.minutes:g} minutes: RSS of the last quarter, more than of the second",
            "MB",
            late - early,
            bar=GROWTH_BAR_MB,
            detail=f"from {early:.0f} to {late:.0f} MB, {replayed.requests:,.0f} requests, "
            f"{replayed.events:,.0f} events, none lost",
            values={"rss_mb": memory, "minutes": stage.plan.minutes},
        )
    ]
