"""The command: `python -m benchmarks.docs`. Write tables and plots of stored results into the documentation.

Only full runs are shown: `--quick` has too few rounds. What has not been measured is not in a table.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from benchmarks import fleet_model, plots, results, traffic
from benchmarks.fleet_model import ASSUMED, FLEETS, SOURCES, Costs, Prediction
from benchmarks.report import as_table
from benchmarks.results import Measured

ROOT = Path(__file__).parents[1]
PAGES = ("performance.md", "scaling.md")
MISSING = "Not measured yet."
BLOCK = re.compile(r"<!-- benchmarks: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
TLS = "TLS on both sides, "
REPLAY = "bench-replay-"
NEEDED = ("fleet", "streams", "idle", "tls", "requests")
"""Measures whose results the model takes."""


def write(measured: Mapping[str, Measured], docs: Path) -> list[Path]:
    """Replace every block between the marks, write the plots, and return the files."""
    whole = {name: found for name, found in measured.items() if not found.quick}
    written = []
    for name, text in drawn(whole).items():
        path = docs / "images" / f"{name}.svg"
        path.write_text(text)
        written.append(path)
    for page in PAGES:
        path = docs / page
        path.write_text(BLOCK.sub(lambda found: _block(found[1], whole), path.read_text()))
        written.append(path)
    return written


def drawn(measured: Mapping[str, Measured]) -> Mapping[str, str]:
    """Return plots by the name of their file."""
    found: dict[str, str] = {}
    compared = [
        (result.name, result.ratio, result.bar)
        for measure in ("requests", "chunks", "stall", "sizes", "tls", "workers", "peers")
        if measure in measured
        for result in measured[measure].results
        if result.ratio is not None
    ]
    if compared:
        found["bench-ratios"] = plots.bars("Ratio to bare mitmdump, and bars", "bare = 1", compared)
    if "soak" in measured:
        values = measured["soak"].results[0].values
        memory, minutes = _numbers(values["rss_mb"]), _number(values["minutes"])
        places = [minutes * number / len(memory) for number in range(len(memory))]
        found["bench-soak"] = plots.lines("Memory under a steady load", "minutes", "MB", places, {"RSS": memory})
    for result in measured["fleet"].results if "fleet" in measured else ():
        if "measured_cores" in result.values:
            name = "one" if "one worker" in result.name else "two"
            series = {word: _numbers(result.values[f"{word}_cores"]) for word in ("predicted", "measured")}
            places = _numbers(result.values["requests_per_second"])
            title = f"CPU of {name} worker{'s' if name == 'two' else ''}: model and replay"
            found[f"{REPLAY}{name}"] = plots.lines(title, "requests per second", "cores", places, series)
    return found


def costs_of(measured: Mapping[str, Measured]) -> Costs | None:
    """Return what the model takes, or None where some of it has not been measured."""
    if not all(name in measured for name in NEEDED):
        return None
    values: dict[str, float | list[float]] = {}
    for name in NEEDED:
        for result in measured[name].results:
            values |= result.values
    with_tls = {result.name.removeprefix(TLS): result.ours for result in measured["tls"].results}
    request = with_tls[f"CPU per request: {traffic.SMALL.name}"]
    [plain] = [result.ours for result in measured["requests"].results if result.name.startswith("CPU per request")]
    points = zip(_numbers(values["request_bytes"]), _numbers(values["request_us"]), strict=True)
    names = (
        *("worker_mb", "stream_kb", "idle_kb", "rows", "sqlite_bytes", "postgres_bytes"),
        *("postgres_us", "postgres_connections"),
    )
    return Costs(
        request_us=[(size, cpu + request - plain) for size, cpu in points],
        chunk_us=with_tls[f"CPU per chunk: {traffic.MESSAGES.name}"] - request / traffic.EVENTS,
        connection_us=with_tls["CPU per request on a new connection"],
        one_by_one=_one_by_one(measured["fleet"]),
        **{name: _number(values[name]) for name in names},
    )


def _one_by_one(fleet: Measured) -> float:
    """Return needed to predicted CPU of the replay whose prediction is nearest to the assumed use of a core."""
    [replays] = [result.values for result in fleet.results if "one worker, highest load" in result.name]
    pairs = zip(_numbers(replays["predicted_cores"]), _numbers(replays["measured_cores"]), strict=True)
    predicted, needed = min(pairs, key=lambda pair: abs(pair[0] - ASSUMED.busy))
    return needed / predicted


def _block(name: str, measured: Mapping[str, Measured]) -> str:
    make = BLOCKS.get(name)
    text = make(measured) if make else _table(name, measured)
    return f"<!-- benchmarks: {name} -->\n{text}\n<!-- end -->"


def _table(measure: str, measured: Mapping[str, Measured]) -> str:
    """Return a measure's results, and which machine they are of."""
    found = measured.get(measure)
    if found is None:
        return MISSING
    which = wrapped(f"{found.measured_at[:10]}: {found.machine}; load before: {found.load:.1f}.")
    return f"{which}\n\n```\n{as_table(found.results)}\n```"


def _plots(measured: Mapping[str, Measured]) -> str:
    return _images([name for name in drawn(measured) if not name.startswith(REPLAY)])


def _images(names: Sequence[str]) -> str:
    lines = [f"![{name.removeprefix('bench-').replace('-', ' ')}](images/{name}.svg)" for name in names]
    return "\n\n".join(lines) or MISSING


def _replays(measured: Mapping[str, Measured]) -> str:
    """Return each replay: what was offered, what the model says of the answers that ended, and what they needed."""
    rows = [
        "| Workers | Requests a second | Cores predicted | Cores needed | Late at most, 99 % of events |",
        "|---" * 5 + "|",
    ]
    for result in measured["fleet"].results if "fleet" in measured else ():
        if "measured_cores" in result.values:
            columns = ("requests_per_second", "predicted_cores", "measured_cores", "delay_p99_ms")
            workers = "one" if "one worker" in result.name else "two"
            for rate, predicted, needed, late in zip(*(_numbers(result.values[name]) for name in columns), strict=True):
                rows.append(f"| {workers} | {rate:.0f} | {predicted:.2f} | {needed:.2f} | {late:.0f} ms |")
    images = [name for name in drawn(measured) if name.startswith(REPLAY)]
    return "\n".join(rows) + "\n\n" + _images(images) if images else MISSING


def _fleet(measured: Mapping[str, Measured]) -> str:
    costs = costs_of(measured)
    if costs is None:
        return MISSING
    predicted = [fleet_model.predict(developers, costs) for developers in FLEETS]
    rows = [f"| Developers | {' | '.join(f'{each.developers:,}' for each in predicted)} |", "|---" * 5 + "|"]
    rows += [f"| {name} | {' | '.join(show(each) for each in predicted)} |" for name, show in COLUMNS.items()]
    return "\n".join(rows)


def _assumptions(_: Mapping[str, Measured]) -> str:
    items = (f"- **{name[0].upper()}{name[1:]}**: {source}." for name, source in SOURCES.items())
    return "\n".join(wrapped(item, "  ") for item in items)


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


COLUMNS: Mapping[str, Callable[[Prediction], str]] = MappingProxyType(
    {
        "Requests a second": lambda each: f"{each.requests_per_second:,.1f}",
        "Streams at once": lambda each: f"{each.streams:,.0f}",
        "Events a second": lambda each: f"{each.events_per_second:,.0f}",
        "Cores in use": lambda each: f"{each.cores:,.1f}",
        "Workers": lambda each: f"{each.workers:,}",
        "Developers per worker": lambda each: f"{each.developers / each.workers:,.0f}",
        "Hosts": lambda each: f"{each.hosts:,}",
        "Memory, GB": lambda each: f"{each.memory_gb:,.1f}",
        "Connections of clients": lambda each: f"{each.client_connections:,.0f}",
        "Descriptors": lambda each: f"{each.descriptors:,.0f}",
        "Network, MB/s each way": lambda each: f"{each.network_mb:,.1f}",
        "Rows a second": lambda each: f"{each.rows_per_second:,.1f}",
        "Cores of PostgreSQL": lambda each: f"{each.postgres_cores:,.2f}",
        "Connections to PostgreSQL": lambda each: f"{each.postgres_connections:,.0f}",
        "SQLite, GB a month": lambda each: f"{each.sqlite_gb:,.1f}",
        "PostgreSQL, GB a month": lambda each: f"{each.postgres_gb:,.1f}",
        "What is used most": lambda each: each.first_to_saturate,
    }
)
BLOCKS: Mapping[str, Callable[[Mapping[str, Measured]], str]] = MappingProxyType(
    {"plots": _plots, "fleet-table": _fleet, "assumptions": _assumptions, "replays": _replays}
)


def _numbers(value: float | Sequence[float]) -> list[float]:
    assert not isinstance(value, float | int)
    return list(value)


def _number(value: float | Sequence[float]) -> float:
    assert isinstance(value, float | int)
    return float(value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docs", description=__doc__)
    parser.add_argument("--results", type=Path, default=results.STORED, help="what --into wrote (%(default)s)")
    options = parser.parse_args()
    for path in write(results.read(options.results), ROOT / "docs"):
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
