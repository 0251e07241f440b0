"""How long a large request stalls everybody else's streams: mitmproxy has one event loop for all of them."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence

from benchmarks import proxies, traffic
from benchmarks.client import Tally, load
from benchmarks.measures import LOAD_TIMEOUT, WrongAnswer
from benchmarks.proxies import Proxy
from benchmarks.report import Result
from benchmarks.stage import Stage
from benchmarks.traffic import Scenario
from tests.integration.turns import INJECTED
from tests.support.mcp_servers import HttpMcp

SIZE = 2_000_000
"""Bytes of a large request: a long conversation of Claude Code."""
WITHOUT_TOOLS, WITH_TOOLS = 1.5, 2.5
"""Bars: the stall, as a ratio to that through bare mitmdump."""
STREAMS = 10
EVENTS_PER_SECOND = 100.0
"""Of each stream. Each sends at another time, so that an event is sent every millisecond."""
ROUNDS, QUICK_ROUNDS, PER_VISIT = 48, 8, 8
"""Large requests through each proxy, and how many of them follow one another."""
REST = 0.15
"""Seconds before and after a large request."""
WARM_UP = 3


async def measure(stage: Stage) -> list[Result]:
    """Compare the delay that a large request adds to other streams' events, without tools and with some."""
    stage.say("head of line: starting an MCP server, and mitmdump once more")
    with (
        HttpMcp() as mcp,
        proxies.with_tools(stage.folder("stall"), stage.upstream.port, mcp.url) as tools,
    ):
        compared = (stage.both.bare, stage.both.ours, tools)
        stalls: dict[str, list[float]] = {proxy.name: [] for proxy in compared}
        usual: dict[str, list[float]] = {proxy.name: [] for proxy in compared}
        rounds = QUICK_ROUNDS if stage.plan.quick else ROUNDS
        large = traffic.sized(traffic.SMALL, SIZE)
        visits = rounds // PER_VISIT
        for number in range(visits):
            stage.say(f"head of line, round {number + 1} of {visits}")
            for proxy in compared if number % 2 == 0 else reversed(compared):
                found = await _stalls(stage, proxy, large, PER_VISIT)
                if (INJECTED in stage.upstream.asked) != (proxy is tools):
                    raise WrongAnswer(f"tools were offered by the wrong proxy, or by none: {proxy.name}")
                stalls[proxy.name] += found[0]
                usual[proxy.name] += found[1]
    return [
        _result("without tools", stalls["bare"], stalls["ours"], usual["ours"], WITHOUT_TOOLS),
        _result("with tools", stalls["bare"], stalls[tools.name], usual[tools.name], WITH_TOOLS),
    ]


async def _stalls(stage: Stage, proxy: Proxy, large: Scenario, count: int) -> tuple[list[float], list[float]]:
    """Return the longest delay of an event around each large request, and without one, in milliseconds."""
    upstream = stage.upstream
    seconds = (count + WARM_UP) * (3 * REST + 0.3) + 2
    victims = traffic.long_messages(int(seconds * EVENTS_PER_SECOND))
    windows: list[tuple[float, float]] = []
    quiet: list[tuple[float, float]] = []
    async with upstream.paced(EVENTS_PER_SECOND, phases=STREAMS):
        streaming = asyncio.create_task(
            load(proxy.port, victims, upstream, count=STREAMS, connections=STREAMS, timeout=LOAD_TIMEOUT)
        )
        await asyncio.sleep(2 * REST)
        for number in range(-WARM_UP, count):
            began = time.perf_counter()
            await asyncio.sleep(REST)
            asked = time.perf_counter()
            tally = await load(proxy.port, large, upstream, count=1, connections=1, timeout=LOAD_TIMEOUT)
            if tally.wrong:
                raise WrongAnswer(f"a large request through {proxy.name} was not answered")
            await asyncio.sleep(REST)  # what is done beside the request's way, such as its records
            if number >= 0:
                quiet.append((began, asked))
                windows.append((asked, time.perf_counter()))
        tally = await streaming
    if tally.wrong:
        raise WrongAnswer(f"{tally.wrong} of {STREAMS} streams through {proxy.name} were wrong")
    return _longest(tally, windows), _longest(tally, quiet)


def _longest(tally: Tally, windows: Sequence[tuple[float, float]]) -> list[float]:
    return [1000 * max(delay for at, delay in tally.delays if begin <= at <= end) for begin, end in windows]


def _result(name: str, bare: list[float], ours: list[float], usual: list[float], bar: float) -> Result:
    compared = [statistics.median(times) for times in (bare, ours)]
    return Result(
        f"stall of other streams by a {SIZE / 1e6:.0f} MB request, {name}",
        "ms",
        bare=compared[0],
        ours=compared[1],
        ratio=compared[1] / compared[0],
        bar=bar,
        detail=f"median of {len(ours)} requests, up to {max(ours):.1f}; without such a request "
        f"{statistics.median(usual):.1f}",
        values={"bare_ms": sorted(bare), "ours_ms": sorted(ours)},
    )
