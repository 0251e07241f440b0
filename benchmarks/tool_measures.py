"""What injected tools cost: an extra turn, and what every request and chunk bears where tools are offered."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

from mcp.client import Client

from benchmarks import traffic
from benchmarks.measures import Bench, WrongAnswer, compared_rounds
from benchmarks.report import Result
from benchmarks.traffic import Answer, Scenario
from benchmarks.turns import ARGUMENTS, TOOL, TurnsScenario, one_turn, two_turns
from tests.integration.turns import DIALECTS, INJECTED

EXTRA_TURN_BAR_MS = 3.0
PER_ROUND = 9
"""Requests, and calls, of which a round takes the median: the first of them also opens connections."""
WARM_UP_ROUNDS = 2


class ToolBench(Bench):
    """`bare` is the bridge without MCP servers here, `ours` the bridge with one."""

    async def injecting(self) -> list[Result]:
        """CPU of requests that are offered tools and of answers that call none, against no tools at all."""
        count = self._plan.requests
        await self._warm_up(traffic.SMALL)
        self._check_offered()
        rounds = await self._cpu_rounds(traffic.SMALL, count, per=count)
        results = [compared_rounds("tools offered, CPU per request: " + traffic.SMALL.name, "µs", rounds)]
        streams = self._plan.streams
        for scenario in map(_held_together, traffic.STREAMS):
            await self._warm_up(scenario)
            self._check_offered()
            rounds = await self._cpu_rounds(scenario, streams, per=streams * traffic.EVENTS)
            results.append(compared_rounds("tools offered, CPU per chunk: " + scenario.name, "µs", rounds))
        return results

    def _check_offered(self) -> None:
        """The proxy that was warmed up last has tools."""
        if INJECTED not in self._upstream.asked:
            raise WrongAnswer("no tools were offered")

    async def turns(self, mcp_url: str) -> list[Result]:
        """Our own share of an extra turn: what a client waits longer for two turns than for one, but for the tool.

        What the upstream takes is left in: it answers in the callback in which it has read the request.
        """
        async with Client(mcp_url, cache=None) as tool:
            return [
                await self._extra_turn(
                    one_turn(dialect, streaming=streaming), two_turns(dialect, streaming=streaming), tool
                )
                for dialect in DIALECTS
                for streaming in (True, False)
            ]

    async def _extra_turn(self, one: TurnsScenario, two: TurnsScenario, tool: Client) -> Result:
        """One request at a time; each round takes all three times, one right after the other."""
        form = "streamed" if one.answer.streaming else "not streamed"
        shares: list[float] = []
        parts: list[tuple[float, float, float]] = []
        for number in range(-WARM_UP_ROUNDS, self._plan.turn_rounds):
            self._say(f"extra turn: {one.turns.dialect}, {form}, round {number + 1} of {self._plan.turn_rounds}")
            if number % 2:
                one_ms, two_ms = await self._answered_ms(one), await self._answered_ms(two)
            else:
                two_ms, one_ms = await self._answered_ms(two), await self._answered_ms(one)
            tool_ms = await _called_ms(tool)
            if number >= 0:
                parts.append((two_ms, one_ms, tool_ms))
                shares.append(two_ms - one_ms - tool_ms)
        two_ms, one_ms, tool_ms = (statistics.median(column) for column in zip(*parts, strict=True))
        cpu_ms = await self._cpu_ms(two) - await self._cpu_ms(one)
        low, _, high = statistics.quantiles(shares, n=4)
        return Result(
            f"extra turn: {one.turns.dialect.replace('_', ' ')}, {form}",
            "ms",
            ours=statistics.median(shares),
            bar=EXTRA_TURN_BAR_MS,
            detail=f"two turns {two_ms:.1f}, one {one_ms:.1f}, tool {tool_ms:.1f}; "
            f"{len(shares)} rounds, half of them {low:.2f}–{high:.2f}; CPU of the extra turn {cpu_ms:.2f}",
        )

    async def _answered_ms(self, scenario: TurnsScenario) -> float:
        """How long an answer takes until its last byte, on a connection that is open."""
        tally = await self._load(self._proxies.ours, scenario, PER_ROUND, connections=1)
        return statistics.median(tally.answered_ms)

    async def _cpu_ms(self, scenario: TurnsScenario) -> float:
        """What an answer costs the proxy in CPU, the tool's call included."""
        proxy, count = self._proxies.ours, self._plan.turn_rounds * PER_ROUND
        before = await proxy.cpu_seconds()
        await self._load(proxy, scenario, count, connections=1)
        return (await proxy.cpu_seconds() - before) * 1000 / count


async def _called_ms(tool: Client) -> float:
    """Measure a call of the tool with this library on an open connection."""
    times: list[float] = []
    for _ in range(PER_ROUND):
        began = time.perf_counter()
        result = await tool.call_tool(TOOL, ARGUMENTS)
        times.append((time.perf_counter() - began) * 1000)
        if result.is_error:
            raise WrongAnswer("the MCP server answered with an error")
    return statistics.median(times)


def _held_together(scenario: Scenario) -> Scenario:
    """The same stream, its last two packets in one.

    Where tools are offered, an event that may be the answer's last but one waits for what follows, and an upstream in
    lockstep would wait for the client to see it.
    """
    asked = scenario.asked_answer
    return replace(scenario, answer=_joined(scenario.answer), asked_answer=asked and _joined(asked))


def _joined(answer: Answer) -> Answer:
    return replace(answer, packets=(*answer.packets[:-2], b"".join(answer.packets[-2:])))
