"""The command: `python -m benchmarks [--quick] [--only MEASURE] [--into FILE] [--json]`."""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from benchmarks import (
    crowds,
    fleet,
    head_of_line,
    peers,
    proxies,
    report,
    results,
    server_measures,
    soak,
    traffic,
    transports,
)
from benchmarks.measures import QUICK, Bench, Plan, WrongAnswer
from benchmarks.proxies import Proxies
from benchmarks.report import Result
from benchmarks.stage import Stage
from benchmarks.tool_measures import ToolBench
from benchmarks.upstream import Upstream
from benchmarks.worker_measures import WorkerBench
from tests.support.mcp_servers import HttpMcp


async def _requests(stage: Stage) -> list[Result]:
    return await _bench(stage).requests()


async def _chunks(stage: Stage) -> list[Result]:
    return [await _bench(stage).chunks(scenario) for scenario in traffic.STREAMS]


async def _first_byte(stage: Stage) -> list[Result]:
    return await _bench(stage).first_byte()


async def _loss(stage: Stage) -> list[Result]:
    return [await _bench(stage).loss()]


async def _workers(stage: Stage) -> list[Result]:
    stage.say("starting aibridge serve twice")
    folder, port = stage.folder("workers"), stage.upstream.port
    with proxies.serving(folder / "one", port, 1) as one, proxies.serving(folder / "two", port, 2) as two:
        alone = WorkerBench(Proxies(stage.both.bare, replace(one, name="ours")), stage.upstream, stage.plan, stage.say)
        both = WorkerBench(Proxies(one, two), stage.upstream, stage.plan, stage.say)
        return [*await alone.uvloop(), await both.two_workers()]


async def _injecting(stage: Stage) -> list[Result]:
    return await _with_tools(stage, "injecting", lambda bench, _: bench.injecting())


async def _turns(stage: Stage) -> list[Result]:
    return await _with_tools(stage, "turns", lambda bench, url: bench.turns(url))


async def _with_tools(
    stage: Stage, name: str, run: Callable[[ToolBench, str], Awaitable[list[Result]]]
) -> list[Result]:
    stage.say("starting an MCP server, and mitmdump once more")
    with HttpMcp() as mcp, proxies.with_tools(stage.folder(name), stage.upstream.port, mcp.url) as tools:
        bench = ToolBench(Proxies(stage.both.ours, tools), stage.upstream, stage.plan, stage.say)
        return await run(bench, mcp.url)


def _bench(stage: Stage) -> Bench:
    return Bench(stage.both, stage.upstream, stage.plan, stage.say)


MEASURES: Mapping[str, Callable[[Stage], Awaitable[Sequence[Result]]]] = MappingProxyType(
    {
        "requests": _requests,
        "chunks": _chunks,
        "first-byte": _first_byte,
        "loss": _loss,
        "stall": head_of_line.measure,
        "sizes": transports.sizes,
        "tls": transports.tls,
        "streams": crowds.streams,
        "idle": crowds.idle,
        "workers": _workers,
        "injecting": _injecting,
        "turns": _turns,
        "servers": server_measures.measure,
        "fleet": fleet.measure,
        "peers": peers.measure,
        "soak": soak.measure,
    }
)
ON_DEMAND = frozenset({"peers", "soak"})
"""Measures that need an installation or an hour, so they run only where `--only` names them."""


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that both proxies are ended then, too
    plan = replace(QUICK if options.quick else Plan(), minutes=options.minutes)
    wanted = options.only or [name for name in MEASURES if name not in ON_DEMAND]
    try:
        found = asyncio.run(_measure(plan, [name for name in MEASURES if name in wanted], options.into))
    except WrongAnswer as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(report.as_json(found) if options.json else report.as_table(found))
    return 1 if any(result.passed is False for result in found) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the bridge against bare mitmdump, in one run.",
        epilog="Exit code 0: every bar is met; 1: one is missed; 2: an answer was wrong, so nothing counts. "
        "docs/performance.md explains what is measured, how long it takes, and how to read it.",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the load: to see that it works")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", action="append", choices=tuple(MEASURES), help="measure only this (may be repeated)")
    parser.add_argument("--into", type=Path, metavar="FILE", help="store the results of each measure in this file, too")
    parser.add_argument("--minutes", type=float, default=Plan.minutes, help="how long the soak lasts (%(default)s)")
    return parser


async def _measure(plan: Plan, wanted: Sequence[str], into: Path | None) -> list[Result]:
    _allow_many_descriptors()
    found: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="aibridge-bench-") as name:
        folder = Path(name)
        async with Upstream().running() as upstream:
            _say("starting mitmdump twice")
            with proxies.running(folder, upstream.port) as both:
                stage = Stage(folder, upstream, both, plan, _say)
                for measure in wanted:
                    frame = results.begin(quick=plan.quick)
                    measured = await MEASURES[measure](stage)
                    if into is not None:
                        results.store(into, measure, replace(frame, results=measured))
                    found += measured
    return found


def _allow_many_descriptors() -> None:
    """Take as many as the system allows, also for the proxies."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
