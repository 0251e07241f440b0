"""What `aibridge serve` costs: one worker on uvloop against bare mitmdump, and two workers against one."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import traffic
from benchmarks.measures import Bench, compared_rounds
from benchmarks.report import Result

UVLOOP_BAR = 0.60
"""Of a chunk."""
SHARE = 0.85
"""Of N times the load of one worker, N workers carry at least that on as many cores. The load is what a core's time is
spent on: so one request may cost 1 / SHARE times what it costs with one worker."""


class WorkerBench(Bench):
    async def uvloop(self) -> list[Result]:
        """`bare` is bare mitmdump on asyncio, `ours` one worker on uvloop, its supervisor included."""
        scenario, streams = traffic.MESSAGES, self._plan.streams
        await self._warm_up(scenario)
        cpu = await self._cpu_rounds(scenario, streams, per=streams * traffic.EVENTS)
        chunk = compared_rounds("one worker on uvloop, CPU per chunk: " + scenario.name, "µs", cpu, UVLOOP_BAR)
        return [await self._request("one worker on uvloop, CPU per request: "), chunk]

    async def two_workers(self) -> Result:
        """`bare` is one worker here, `ours` two."""
        result = await self._request("two workers, CPU per request: ")
        return replace(result, bar=1 / SHARE)

    async def _request(self, name: str) -> Result:
        count = self._plan.requests
        for proxy in self._proxies.in_turn(0):
            await self._load(proxy, traffic.SMALL, self._plan.warm_up)
        cpu = await self._cpu_rounds(traffic.SMALL, count, per=count)
        return compared_rounds(name + traffic.SMALL.name, "µs", cpu)
