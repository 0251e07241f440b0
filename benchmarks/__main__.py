"""The command: `python -m benchmarks [--quick] [--json]`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks import proxies, report, traffic
from benchmarks.measures import QUICK, Bench, Plan, WrongAnswer
from benchmarks.proxies import Proxies, Proxy
from benchmarks.report import Result
from benchmarks.tool_measures import ToolBench
from benchmarks.upstream import Upstream
from benchmarks.worker_measures import WorkerBench
from tests.support.mcp_servers import HttpMcp

MEASURES = ("requests", "chunks", "first-byte", "loss", "injecting", "turns", "workers")
WITH_TOOLS = frozenset(("injecting", "turns"))


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that both proxies are ended then, too
    try:
        results = asyncio.run(_measure(QUICK if options.quick else Plan(), options.only or MEASURES))
    except WrongAnswer as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(report.as_json(results) if options.json else report.as_table(results))
    return 1 if any(result.passed is False for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the bridge against bare mitmdump, in one run (about 7 minutes).",
        epilog="Exit code 0: every bar is met; 1: one is missed; 2: an answer was wrong, so nothing counts. "
        "docs/performance.md explains what is measured, and how to read it.",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the load: to see that it works")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", action="append", choices=MEASURES, help="measure only this (may be repeated)")
    return parser


async def _measure(plan: Plan, wanted: tuple[str, ...]) -> list[Result]:
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="aibridge-bench-") as folder:
        async with Upstream().running() as upstream:
            _say("starting mitmdump twice")
            with proxies.running(Path(folder), upstream.port) as both:
                bench = Bench(both, upstream, plan, _say)
                if "requests" in wanted:
                    results += await bench.requests()
                if "chunks" in wanted:
                    results += [await bench.chunks(scenario) for scenario in traffic.STREAMS]
                if "first-byte" in wanted:
                    results += await bench.first_byte()
                if "loss" in wanted:
                    results.append(await bench.loss())
                if "workers" in wanted:
                    results += await _measure_workers(Path(folder), both.bare, upstream, plan)
                if WITH_TOOLS.intersection(wanted):
                    results += await _measure_tools(Path(folder), both.ours, upstream, plan, wanted)
    return results


async def _measure_workers(folder: Path, bare: Proxy, upstream: Upstream, plan: Plan) -> list[Result]:
    _say("starting aibridge serve twice")
    port = upstream.port
    with proxies.serving(folder / "one", port, 1) as one, proxies.serving(folder / "two", port, 2) as two:
        alone = WorkerBench(Proxies(bare, replace(one, name="ours")), upstream, plan, _say)
        both = WorkerBench(Proxies(one, two), upstream, plan, _say)
        return [*await alone.uvloop(), await both.two_workers()]


async def _measure_tools(
    folder: Path, without: Proxy, upstream: Upstream, plan: Plan, wanted: tuple[str, ...]
) -> list[Result]:
    results: list[Result] = []
    _say("starting an MCP server, and mitmdump once more")
    with HttpMcp() as mcp, proxies.with_tools(folder, upstream.port, mcp.url) as tools:
        bench = ToolBench(Proxies(without, tools), upstream, plan, _say)
        if "injecting" in wanted:
            results += await bench.injecting()
        if "turns" in wanted:
            results += await bench.turns(mcp.url)
    return results


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
