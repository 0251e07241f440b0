"""What one more MCP server costs: requests with its tools, and memory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from benchmarks import proxies, traffic
from benchmarks.measures import Bench, compared_rounds
from benchmarks.proxies import Proxies
from benchmarks.report import Result
from benchmarks.stage import Stage
from tests.support.mcp_servers import HttpMcp


async def measure(stage: Stage) -> list[Result]:
    """Compare two servers of 22 tools each with one."""
    stage.say("starting two MCP servers, and mitmdump twice")
    folder, port = stage.folder("servers"), stage.upstream.port
    with ExitStack() as running:
        urls = [running.enter_context(HttpMcp()).url for _ in range(2)]
        one = running.enter_context(proxies.with_tools(folder, port, urls[0]))
        two = running.enter_context(proxies.with_tools(folder, port, *urls))
        both = Proxies(replace(one, name="one server"), replace(two, name="two servers"))
        return await _Servers(both, stage.upstream, stage.plan, stage.say).compare()


class _Servers(Bench):
    """`bare` is the bridge with one MCP server here, `ours` the bridge with two."""

    async def compare(self) -> list[Result]:
        count = self._plan.requests
        await self._warm_up(traffic.SMALL)
        cpu = await self._cpu_rounds(traffic.SMALL, count, per=count)
        one, two = (proxy.rss_bytes() / 2**20 for proxy in self._proxies.in_turn(0))
        return [
            compared_rounds("one more MCP server, CPU per request", "µs", cpu),
            Result("one more MCP server, memory", "MB", two, bare=one),
        ]
