"""The command: `python -m benchmarks.pages`. Measure `aibridge web` and `aibridge live` with the rows of a year."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from zoneinfo import ZoneInfo

from rich.console import Console
from starlette.testclient import TestClient

from aibridge_addon.cli.live_screen import View, draw
from aibridge_addon.recording.live import snapshot
from aibridge_addon.recording.queries import NO_PARAMETERS, Queries
from aibridge_addon.web.app import Source, application
from benchmarks.databases import INTERCEPTIONS, Place, places, say
from benchmarks.report import Result, as_json, as_table
from benchmarks.stored_rows import END, stored

ROUNDS = 5
"""The fastest counts, because others only show what else the machine did."""
PAGE, REFRESH = 300.0, 100.0
"""Bars: milliseconds until the first page is there, and milliseconds of CPU for a refresh of the screen."""
ZONE = ZoneInfo("Europe/Paris")
URL = "http://127.0.0.1:9470"
PAGES: Mapping[str, str] = MappingProxyType(
    {
        "overview": "/",
        "overview, a year": "/?days=365",
        "sessions": "/sessions",
        "sessions, page 20": "/sessions?page=20",
        "search that finds much": "/sessions?search=failing",
        "search that finds nothing": "/sessions?search=no+such+word",
        "tools": "/tools",
        "providers": "/providers",
        "unpriced": "/unpriced",
    }
)


class Timed:
    """Queries whose CPU time, also that of the database's own process, is added up."""

    def __init__(self, place: Place, used: list[float]) -> None:
        self._queries = place.queries()
        self._place = place
        self._used = used
        self.postgres = self._queries.postgres

    def __enter__(self) -> Self:
        self._queries.__enter__()
        self._began = self._place.cpu()
        return self

    def __exit__(self, *error: object) -> None:
        self._used.append(self._place.cpu() - self._began)
        self._queries.__exit__(*error)

    def select(self, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS) -> Iterator[dict[str, Any]]:
        return self._queries.select(sql, parameters)

    def stream(self, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS) -> Iterator[dict[str, Any]]:
        return self._queries.stream(sql, parameters)


def measure(place: Place, interceptions: int) -> Iterator[Result]:
    say(f"{place.name}: filling with {interceptions} interceptions")
    place.fill(stored(interceptions))
    used: list[float] = []

    def queries() -> Queries:
        return Timed(place, used)

    source = Source(queries, budgets=list, name=place.name, zone=ZONE, now=lambda: END)
    with TestClient(application(source, token=None), base_url=URL) as pages:
        for name, path in PAGES.items():
            bar = PAGE if name == "overview" else None
            yield _best(f"{place.name}, page: {name}", lambda path=path: _opened(pages, path), used, bar=bar)  # type: ignore[misc]

    def refresh() -> str:
        with queries() as rows:
            found = snapshot(rows, END, ZONE)
        console = Console(file=_Nowhere(), width=160, height=50, force_terminal=True)  # type: ignore[arg-type]
        console.print(draw(View(place.name, ZONE, found), END, 160, 50))
        return f"{len(found.ended)} ended"

    yield _best(f"{place.name}, live: a refresh (CPU)", refresh, used, bar=REFRESH, by_cpu=True)


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def _opened(pages: TestClient, path: str) -> str:
    answer = pages.get(path)
    if answer.status_code != 200:
        raise RuntimeError(f"{path}: {answer.status_code}")
    return f"{len(answer.content) // 1000} kB"


def _best(name: str, run: Callable[[], str], used: list[float], *, bar: float | None, by_cpu: bool = False) -> Result:
    times, cpu, said = list[float](), list[float](), ""
    for _ in range(ROUNDS):
        used.clear()
        began, own = time.perf_counter(), time.process_time()
        said = run()
        times.append(1000 * (time.perf_counter() - began))
        # `used` has the time of this process during the queries, too.
        cpu.append(1000 * max(sum(used), time.process_time() - own))
    ours, other = (min(cpu), min(times)) if by_cpu else (min(times), min(cpu))
    detail = f"{'in all' if by_cpu else 'CPU'} {other:.0f}, slowest {max(times):.0f}, {said}"
    result = Result(name, "ms", ours, bar=bar, detail=detail)
    say(f"{name}: {ours:.1f} ms, {detail}")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--interceptions", type=int, default=INTERCEPTIONS, help="how many; 3.5 rows for each")
    parser.add_argument("--only", choices=("sqlite", "postgresql"), action="append")
    parser.add_argument("--json", action="store_true", help="for programs; progress is on stderr")
    options = parser.parse_args(arguments)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="aibridge-bench-") as folder:
        for place in places(options.only or ("sqlite", "postgresql"), Path(folder)):
            results += measure(place, options.interceptions)
    print(as_json(results) if options.json else as_table(results))
    return int(any(result.passed is False for result in results))


if __name__ == "__main__":
    sys.exit(main())
