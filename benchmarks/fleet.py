"""Measure what the model of a fleet needs, and check its prediction for one host against a replay."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg

from benchmarks import fleet_model, proxies, traffic
from benchmarks.fleet_model import ASSUMED, Costs
from benchmarks.measures import Bench
from benchmarks.proxies import Proxies, Proxy
from benchmarks.replay import Replay, Replayed
from benchmarks.report import Result
from benchmarks.stage import Stage
from tests.support.database import query
from tests.support.postgres import ADMINISTRATOR, PostgresServer, running_server

SIZES = (10_000, 100_000, 2_000_000)
"""Bytes of requests."""
COUNTS = (300, 100, 10)
"""Requests of each size in a round."""
LOADS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.15)
"""Shares of the load that the model predicts for a core of each worker."""
QUICK_LOADS = (0.25, 0.6)
SECONDS, QUICK_SECONDS = 30.0, 6.0
LIMITS = "limits: {connections_per_client: 8192, connections: 8192}\n"
"""All sessions come from one address here."""
CARRIED = 250.0
"""Milliseconds by which 99 % of the events are late at most, where a load is carried."""
POSTGRES_SHARE = 0.4
ROUNDS, QUICK_ROUNDS = 5, 2


@dataclass(frozen=True)
class Stored:
    """What a database has grown by."""

    interceptions: float
    rows: float
    bytes: float


async def measure(stage: Stage) -> list[Result]:
    folder, port = stage.folder("fleet"), stage.upstream.port
    quick = stage.plan.quick
    stage.say("fleet: starting aibridge serve with one worker")
    with proxies.serving(folder / "one", port, 1, LIMITS) as worker:
        costs = await _Costs(stage, worker).measure()
        before = _sqlite(worker)
        one = await _replays(stage, worker, costs, 1)
        sqlite = _grown(before, _sqlite(worker))
    stage.say("fleet: starting aibridge serve with two workers")
    with proxies.serving(folder / "two", port, 2, LIMITS) as workers:
        two = await _replays(stage, workers, costs, 2)
    stage.say("fleet: starting PostgreSQL, and aibridge serve with it")
    with running_server({"fsync": "on", "max_connections": "40"}) as server, _on(server, folder, port) as measured:
        worker, database = measured
        cpu, rows = _cpu_of(server), _postgres(server, database)
        rate = POSTGRES_SHARE * 1e6 / _request_us(costs)
        await Replay(worker, stage.upstream).run(rate, QUICK_SECONDS if quick else SECONDS)
        await worker.cpu_seconds()
        postgres = _grown(rows, _postgres(server, database))
        postgres_us = (_cpu_of(server) - cpu) * 1e6 / postgres.interceptions
        connections = _connections(server, database)
    values: dict[str, float | list[float]] = {
        "request_bytes": [size for size, _ in costs.request_us],
        "request_us": [cpu for _, cpu in costs.request_us],
        "chunk_us": costs.chunk_us,
        "worker_mb": costs.worker_mb,
        "rows": postgres.rows / postgres.interceptions,
        "sqlite_bytes": sqlite.bytes / sqlite.interceptions,
        "postgres_bytes": postgres.bytes / postgres.interceptions,
        "postgres_us": postgres_us,
        "postgres_connections": connections,
    }
    return [
        *(_cost(f"CPU of a request of {size / 1e3:,.0f} KB", cpu) for size, cpu in costs.request_us),
        _cost("CPU of a chunk", costs.chunk_us),
        _cost("CPU of PostgreSQL for an interception", postgres_us),
        Result("fleet: rows of an interception", "", values["rows"], values=values),  # type: ignore[arg-type]
        Result("fleet: SQLite, bytes of an interception", "", sqlite.bytes / sqlite.interceptions),
        Result("fleet: PostgreSQL, bytes of an interception", "", postgres.bytes / postgres.interceptions),
        Result("fleet: PostgreSQL, connections of a worker", "", connections),
        *_checked("one worker", one),
        *_checked("two workers", two),
    ]


def _cost(name: str, microseconds: float) -> Result:
    return Result(f"fleet: {name}", "µs", microseconds)


class _Costs(Bench):
    """What one worker of `aibridge serve` spends on requests and chunks."""

    def __init__(self, stage: Stage, worker: Proxy) -> None:
        super().__init__(Proxies(worker, worker), stage.upstream, stage.plan, stage.say)
        self._worker = worker
        self._times = QUICK_ROUNDS if stage.plan.quick else ROUNDS

    async def measure(self) -> Costs:
        await self._load(self._worker, traffic.SMALL, self._plan.warm_up)
        worker_mb = self._worker.rss_bytes() / 2**20
        sizes = [traffic.sized(traffic.SMALL, size) for size in SIZES]
        points = [
            (float(len(traffic.dump(scenario.request))), await self._cost(scenario, count))
            for scenario, count in zip(sizes, COUNTS, strict=True)
        ]
        small = await self._cost(traffic.SMALL, 300)
        stream = await self._cost(traffic.MESSAGES, self._plan.streams)
        chunk_us = (stream - small) / traffic.EVENTS
        return Costs(points, chunk_us, 1, 0, worker_mb, 0, 0, 0, 0, 0, 0, 0)

    async def _cost(self, scenario: traffic.Scenario, count: int) -> float:
        """Return the CPU of an answer in microseconds."""
        spent: list[float] = []
        for number in range(self._times):
            self._say(f"fleet: {scenario.name}, round {number + 1} of {self._times}")
            before = await self._worker.cpu_seconds()
            await self._load(self._worker, scenario, count)
            spent.append((await self._worker.cpu_seconds() - before) * 1e6 / count)
        return statistics.median(spent)


async def _replays(stage: Stage, proxy: Proxy, costs: Costs, workers: int) -> list[tuple[float, float, Replayed]]:
    """Raise the load until it is no longer carried. Return requests per second, predicted cores, and what came out."""
    found: list[tuple[float, float, Replayed]] = []
    for share in QUICK_LOADS if stage.plan.quick else LOADS:
        rate = workers * share * 1e6 / _request_us(costs)
        stage.say(f"fleet: replay of {rate:.0f} requests/s, {share:.0%} of what {workers} cores are predicted to carry")
        replayed = await Replay(proxy, stage.upstream).run(rate, QUICK_SECONDS if stage.plan.quick else SECONDS)
        predicted = fleet_model.cores(costs, replayed.requests / replayed.seconds)
        found.append((rate, predicted, replayed))
        stage.say(f"fleet: {replayed.cores:.2f} cores, {predicted:.2f} predicted, p99 {replayed.delay_p99_ms:.0f} ms")
        if replayed.delay_p99_ms > CARRIED:
            break
    return found


def _request_us(costs: Costs) -> float:
    return fleet_model.cores(costs, 1.0) * 1e6


def _checked(name: str, replays: Sequence[tuple[float, float, Replayed]]) -> list[Result]:
    """Report the highest load that was carried, and the model's error there."""
    carried = [replay for replay in replays if replay[2].delay_p99_ms <= CARRIED]
    rate, predicted, replayed = (carried or replays)[-1]
    if not carried:
        rate = 0.0  # the machine was busy: even the lowest load was late
    developers = rate * 60 / ASSUMED.requests_per_minute(1_000)
    series: dict[str, float | list[float]] = {
        "requests_per_second": [replay[0] for replay in replays],
        "predicted_cores": [replay[1] for replay in replays],
        "measured_cores": [replay[2].cores for replay in replays],
        "delay_p50_ms": [replay[2].delay_p50_ms for replay in replays],
        "delay_p99_ms": [replay[2].delay_p99_ms for replay in replays],
        "carried_requests_per_second": rate,
        "developers": developers,
        "error": predicted / replayed.cores - 1,
    }
    detail = (
        f"{replayed.cores:.2f} cores where {predicted:.2f} are predicted; {replayed.sessions} sessions, "
        f"{replayed.events / replayed.seconds:,.0f} events/s, p99 of their delay {replayed.delay_p99_ms:.0f} ms"
    )
    return [
        Result(f"fleet: {name}, highest load carried, requests per second", "", rate, detail=detail, values=series),
        Result(f"fleet: {name}, error of the prediction", "%", 100 * (predicted / replayed.cores - 1)),
    ]


# --- databases ----------------------------------------------------------------------------------------------------


def _sqlite(worker: Proxy) -> Stored:
    path = worker.mitmdump.database
    tables = query(path, "select name from sqlite_master where type = 'table' and name like 'aibridge_%'")
    counts = {
        name: query(path, f"select count(*) as n from {name}")[0]["n"] for name in (row["name"] for row in tables)
    }
    [size] = query(path, "select page_count * page_size as bytes from pragma_page_count, pragma_page_size")
    return Stored(counts["aibridge_interceptions"], sum(counts.values()), size["bytes"])


def _grown(before: Stored, after: Stored) -> Stored:
    return Stored(after.interceptions - before.interceptions, after.rows - before.rows, after.bytes - before.bytes)


@contextmanager
def _on(server: PostgresServer, folder: Path, port: int) -> Iterator[tuple[Proxy, str]]:
    database = server.take_database()
    with proxies.serving(folder / "postgres", port, 1, f"{LIMITS}database: '{server.url(database)}'\n") as worker:
        yield worker, database


def _postgres(server: PostgresServer, database: str) -> Stored:
    with psycopg.connect(server.url(database, ADMINISTRATOR)) as db:
        tables = [
            name for (name,) in db.execute("select relname from pg_stat_user_tables where relname like 'aibridge_%'")
        ]
        counts = {name: db.execute(f"select count(*) from {name}".encode()).fetchall()[0][0] for name in tables}
        [(size,)] = db.execute("select pg_database_size(current_database())").fetchall()
    return Stored(counts["aibridge_interceptions"], sum(counts.values()), size)


def _connections(server: PostgresServer, database: str) -> int:
    [(found,)] = server.administrate(f"select count(*) from pg_stat_activity where datname = '{database}'")
    return int(found)


def _cpu_of(server: PostgresServer) -> float:
    """Return the CPU of its processes, those included that have ended."""
    [(first,)] = server.administrate("select split_part(pg_read_file('postmaster.pid'), chr(10), 1)")
    process = psutil.Process(int(first))
    own = process.cpu_times()
    ended = own.children_user + own.children_system
    children = [child.cpu_times() for child in process.children()]
    return float(own.user + own.system + ended + sum(each.user + each.system for each in children))
