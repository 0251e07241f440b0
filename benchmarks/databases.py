"""The command: `python -m benchmarks.databases`. Measure queries and writes on databases with the rows of a year."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from io import StringIO
from itertools import batched, chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

import psycopg
from psycopg.rows import dict_row

from aibridge_addon.cli import main as main_of_aibridge
from aibridge_addon.recording.postgres import hourly_usage as postgres_usage
from aibridge_addon.recording.postgres.queries import PostgresQueries
from aibridge_addon.recording.postgres.store import PostgresStore
from aibridge_addon.recording.queries import NO_PARAMETERS, Queries
from aibridge_addon.recording.recorder import Store
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sizes import MAX_TRANSACTION
from aibridge_addon.recording.sqlite import hourly_usage as sqlite_usage
from aibridge_addon.recording.sqlite.pruning import SqlitePrunable
from aibridge_addon.recording.sqlite.queries import SqliteQueries
from aibridge_addon.recording.sqlite.store import SqliteStore
from aibridge_addon.records import Record
from benchmarks.report import Result, as_json, as_table
from benchmarks.stored_rows import COLUMNS, END, TABLES, by_table, stored
from tests.support.dashboard import QUERIES, expanded
from tests.support.examples import ANSWER, ENDED, PROMPT, STARTED, TOKENS, TOOL, uid
from tests.support.postgres import ADMINISTRATOR, PostgresServer, running_server

INTERCEPTIONS = 1_000_000
ROUNDS = 3
"""The fastest counts, because others only show what else the machine did."""
AT_ONCE = 20_000
"""Interceptions whose rows are inserted together."""
BARS = {"SQLite": 1000.0, "PostgreSQL": 500.0}
"""Milliseconds."""
POSTGRES_OPTIONS = {
    "shared_buffers": "512MB",
    "fsync": "on",
    "max_wal_size": "4GB",
    "random_page_cost": "1.1",
    "work_mem": "32MB",
}
"""Those that `docs/performance.md` recommends."""
MONTH, YEAR = timedelta(days=30), timedelta(days=365)

REPORTS = ("daily", "weekly", "monthly", "sessions", "models", "users", "tools", "clients", "providers")
COMMANDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {f"report {name}": ("report", name) for name in REPORTS}
    | {
        "report daily --breakdown": ("report", "daily", "--breakdown"),
        "report daily --by model": ("report", "daily", "--by", "model"),
        "report models --actor user-007": ("report", "models", "--actor", "user-007"),
        "sessions": ("sessions",),
    }
)
"""Commands that are measured over 30 days and over all rows, which are those of a year."""
ZONE = "Europe/Paris"
SUMMING = ("Total usage", "Leaderboard per user", "Top models", "Top clients", "Approximate Cost")
"""Panels that are measured over a year, too."""
SPEND = """
select initiator_id, round(sum(cost_usd), 2) as usd, sum(unpriced) as unpriced
from aibridge_hourly_usage where hour >= :since group by initiator_id order by usd desc
"""
SPEND_BY_ROWS = """
select initiator_id, sum(cost_usd) as usd, sum(case when cost_usd is null then 1 else 0 end) as unpriced
from aibridge_interceptions i join aibridge_token_usages t on t.interception_id = i.id
where started_at >= :since group by initiator_id order by usd desc
"""
AN_ACTORS_LAST = """
select id, started_at, model, status from aibridge_interceptions
where initiator_id = 'user-007' and started_at >= :since order by started_at desc limit 100
"""
THREAD = """
select count(*) from aibridge_interceptions where thread_root_id = (
    select thread_root_id from aibridge_interceptions where thread_root_id is not null limit 1
)
"""


class Place(Protocol):
    """A database that is filled and measured."""

    name: str
    url: str

    def store(self, *, durable: bool) -> Store: ...

    def fill(self, rows: Iterator[Sequence[tuple[str, tuple[Any, ...]]]]) -> None:
        """Insert rows without indexes, and make those again afterwards."""

    def queries(self) -> Queries: ...

    def dashboard(self) -> Queries:
        """Return what runs queries as a dashboard does: the database sends all rows at once."""

    def cpu(self) -> float:
        """Return the CPU time of queries so far, in seconds."""

    def panels(self, since: datetime) -> Mapping[str, str]: ...


class Sqlite:
    name = "SQLite"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "aibridge.db"
        self.url = f"sqlite:///{self._path}"
        with closing(self.store(durable=False)) as store:
            store.open()

    def store(self, *, durable: bool) -> Store:
        return SqliteStore(self._path, durable=durable)

    def fill(self, rows: Iterator[Sequence[tuple[str, tuple[Any, ...]]]]) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as db:
            db.execute("pragma synchronous = off")
            db.execute("pragma cache_size = -1000000")
            indexes = db.execute(
                "select name, sql from sqlite_master where type = 'index' and sql is not null"
                " and tbl_name in (?, ?, ?, ?)",
                TABLES,
            ).fetchall()
            for name, _ in indexes:
                db.execute(f"drop index {name}")
            for some in batched(rows, AT_ONCE, strict=False):
                db.execute("begin")
                for table, inserted in by_table(list(chain.from_iterable(some))).items():
                    columns = COLUMNS[table]
                    places = ", ".join("?" * len(columns))
                    db.executemany(f"insert into {table} ({', '.join(columns)}) values ({places})", inserted)
                db.execute("commit")
            for _, statement in indexes:
                db.execute(statement)
            db.execute(sqlite_usage.FILL)
        with SqlitePrunable(self._path) as database:
            database.settle()  # as every running bridge does every ten minutes

    def queries(self) -> Queries:
        return SqliteQueries(self._path)

    def dashboard(self) -> Queries:
        return self.queries()

    def cpu(self) -> float:
        return time.process_time()

    def panels(self, since: datetime) -> Mapping[str, str]:
        """Return the panels' queries as SQLite has them: cached tokens are columns, and every user is an actor."""
        where = f"where i.started_at between '{timestamp(since)}' and '{timestamp(END)}'"
        sums = ", ".join(
            f"sum(t.{column})"
            for column in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens")
        )
        usages = f"from aibridge_interceptions i join aibridge_token_usages t on t.interception_id = i.id {where}"
        only = f"from aibridge_interceptions i {where}"
        return {
            "username": "select distinct initiator_id from aibridge_interceptions",
            "provider": "select distinct provider from aibridge_interceptions",
            "model": "select distinct model from aibridge_interceptions",
            "client": "select distinct client from aibridge_interceptions",
            "Total usage": f"select {sums} {usages}",
            "Leaderboard per user": f"select initiator_id, {sums} {usages} group by 1 order by 2 desc",
            "Top models": f"select model, count(*) {only} group by 1",
            "Top clients": f"select client, count(*) {only} group by 1",
            "Approximate Cost": f"select provider, i.model, {sums} {usages} group by 1, 2",
            "Total interceptions": f"select count(*) {only}",
            "Interceptions over time by user": f"select substr(started_at, 1, 10), initiator_id, count(*) {only}"
            " group by 1, 2",
            "User Prompts": "select p.created_at, initiator_id, provider, model, prompt from aibridge_interceptions i"
            f" join aibridge_user_prompts p on p.interception_id = i.id {where} order by p.created_at desc",
            "Tool Calls": "select c.created_at, initiator_id, model, tool, input from aibridge_interceptions i"
            f" join aibridge_tool_usages c on c.interception_id = i.id {where} order by c.created_at desc",
        }


class Postgres:
    name = "PostgreSQL"

    def __init__(self, server: PostgresServer) -> None:
        database = server.take_database()
        self.url = server.url(database)
        self._admin = server.url(database, ADMINISTRATOR)
        with closing(self.store(durable=False)) as store:
            store.open()

    def store(self, *, durable: bool) -> Store:
        return PostgresStore(self.url, durable=durable)

    def fill(self, rows: Iterator[Sequence[tuple[str, tuple[Any, ...]]]]) -> None:
        with psycopg.connect(self._admin, autocommit=True) as db:
            db.execute("set session_replication_role = replica")  # without checks of foreign keys
            db.execute("set maintenance_work_mem = '1GB'")
            indexes = db.execute(
                "select indexname, indexdef from pg_indexes where tablename = any(%s) and indexname not like '%%pkey'",
                [list(TABLES)],
            ).fetchall()
            for name, _ in indexes:
                db.execute(f"drop index {name}".encode())
            for some in batched(rows, AT_ONCE, strict=False):
                for table, inserted in by_table(list(chain.from_iterable(some))).items():
                    with (
                        db.cursor() as cursor,
                        cursor.copy(f"copy {table} ({', '.join(COLUMNS[table])}) from stdin".encode()) as copy,
                    ):
                        for row in inserted:
                            copy.write_row(row)
            for _, statement in indexes:
                db.execute(statement.encode())
            db.execute(postgres_usage.FILL.encode())
            db.execute("vacuum analyze")
            db.execute("checkpoint")

    def queries(self) -> Queries:
        queries = PostgresQueries(self.url)
        with psycopg.connect(self._admin) as db:
            clients = "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            [(self._backend,)] = db.execute(clients).fetchall()
        return queries

    def dashboard(self) -> Queries:
        connected = psycopg.connect(self.url, row_factory=dict_row)
        self._backend = connected.info.backend_pid
        return _Dashboard(connected)

    def cpu(self) -> float:
        """Return the time of the backend, without that of parallel workers, and of this process."""
        user, system = Path(f"/proc/{self._backend}/stat").read_text().rsplit(")")[-1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") + time.process_time()

    def panels(self, since: datetime) -> Mapping[str, str]:
        return {name: expanded(query, since, END) for name, query in QUERIES.items()}


@dataclass
class _Dashboard:
    """Without a cursor, for which PostgreSQL plans otherwise and uses one process only."""

    connection: psycopg.Connection[dict[str, Any]]
    postgres = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def select(self, sql: str, _: Mapping[str, object] = NO_PARAMETERS) -> Iterator[dict[str, Any]]:
        yield from self.connection.execute(sql.encode())

    stream = select


class Bench:
    def __init__(self, place: Place, interceptions: int, results: list[Result]) -> None:
        self._place = place
        self._interceptions = interceptions
        self._results = results

    def run(self) -> None:
        place = self._place
        say(f"{place.name}: filling with {self._interceptions} interceptions")
        began = time.perf_counter()
        place.fill(stored(self._interceptions))
        say(f"{place.name}: filled in {time.perf_counter() - began:.0f} s")
        self._queries()
        for name, arguments in COMMANDS.items():
            self._command(f"{name}, 30 days", (*arguments, "--since", (END - MONTH).date().isoformat()))
            self._command(f"{name}, a year", arguments)
        self._writes()

    def _command(self, name: str, arguments: Sequence[str]) -> None:
        """Measure a command of `aibridge` within this process, so without the start of Python."""
        whole = (*arguments, "--timezone", ZONE, "--json", "--database", self._place.url)
        times = list[float]()
        for _ in range(ROUNDS):
            began = time.perf_counter()
            with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()):
                if main_of_aibridge(whole):
                    raise RuntimeError(f"aibridge {' '.join(whole)} failed")
            times.append(1000 * (time.perf_counter() - began))
        rows = len(json.loads(out.getvalue())["rows"])
        self._add(
            f"aibridge {name}", "ms", min(times), BARS[self._place.name], f"slowest {max(times):.0f}, {rows} rows"
        )

    def _queries(self) -> None:
        place = self._place
        since, year = (timestamp(END - age) for age in (MONTH, YEAR))
        with place.dashboard() as queries:
            for name, query in place.panels(END - MONTH).items():
                self._query(queries, f"panel: {name}, 30 days", query, {})
            for name, query in place.panels(END - YEAR).items():
                if name in SUMMING:
                    self._query(queries, f"panel: {name}, a year", query, {}, bar=False)
        with place.queries() as queries:
            for name, query in (("spend by user", SPEND), ("an actor's last", AN_ACTORS_LAST)):
                self._query(queries, f"query: {name}, 30 days", query, {"since": since})
            self._query(queries, "query: spend by user, a year", SPEND, {"since": year})
            self._query(queries, "query: a thread", THREAD, {})
            self._query(
                queries, "spend by user without hourly usage, a year", SPEND_BY_ROWS, {"since": year}, bar=False
            )

    def _query(
        self, queries: Queries, name: str, query: str, parameters: Mapping[str, object], *, bar: bool = True
    ) -> None:
        times, cpu, rows = list[float](), list[float](), 0
        for _ in range(ROUNDS if bar else 1):
            began, used = time.perf_counter(), self._place.cpu()
            rows = sum(1 for _ in queries.select(query, parameters))
            times.append(1000 * (time.perf_counter() - began))
            cpu.append(1000 * (self._place.cpu() - used))
        limit = BARS[self._place.name] if bar else None
        self._add(name, "ms", min(times), limit, f"CPU {min(cpu):.0f}, slowest {max(times):.0f}, {rows} rows")

    def _writes(self) -> None:
        """Measure how fast rows are written in large batches, and how long one answer's rows take."""
        place = self._place
        with closing(place.store(durable=True)) as store:
            store.open()
            count = max(10, self._interceptions // 50)
            written = [_answer(number) for number in range(count)]
            began = time.perf_counter()
            for batch in batched(chain.from_iterable(written), MAX_TRANSACTION, strict=False):
                store.write(batch)
            seconds = time.perf_counter() - began
            self._add("written rows per second", "", sum(map(len, written)) / seconds - count / seconds)
        for durable in (True, False):
            with closing(place.store(durable=durable)) as store:
                store.open()
                times = [1000 * _timed(store, 10_000_000 * (1 + durable) + number) for number in range(300)]
            name = "durable: an answer's end waits" if durable else "for comparison, without its sync"
            self._add(f"{name}, p50", "ms", statistics.median(times))
            self._add(f"{name}, p99", "ms", statistics.quantiles(times, n=100)[98])

    def _add(self, name: str, unit: str, ours: float, bar: float | None = None, detail: str = "") -> None:
        self._results.append(Result(f"{self._place.name}, {name}", unit, ours, bar=bar, detail=detail))
        say(f"{self._place.name}, {name}: {ours:.2f} {unit} {detail}")


def _answer(number: int) -> list[Record]:
    """Return the records of an interception with a prompt, an answer, a call and token usage: five rows."""
    id, at = uid(f"i{number}"), END + timedelta(milliseconds=number)
    usage = replace(TOKENS, interception_id=id, id=uid(f"t{number}"), kind="answer", cost_usd=0.01, created_at=at)
    return [
        replace(STARTED, id=id, initiator_id=f"user-{number % 200:03}", started_at=at),
        replace(PROMPT, interception_id=id, id=uid(f"p{number}"), created_at=at),
        replace(usage, cache_write_input_tokens=10),
        replace(ANSWER, interception_id=id, id=uid(f"a{number}"), created_at=at),
        replace(TOOL, interception_id=id, id=uid(f"c{number}"), created_at=at),
        replace(ENDED, interception_id=id, ended_at=at),
    ]


def _timed(store: Store, number: int) -> float:
    """Return the seconds that the last rows of an answer take: those for which its end waits."""
    started, *rest = _answer(number)
    store.write([started])
    began = time.perf_counter()
    store.write(rest)
    return time.perf_counter() - began


def places(wanted: Sequence[str], folder: Path) -> Iterator[Place]:
    if "sqlite" in wanted:
        yield Sqlite(folder)
    if "postgresql" in wanted:
        with running_server(POSTGRES_OPTIONS) as server:
            yield Postgres(server)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.databases", description=__doc__)
    parser.add_argument("--interceptions", type=int, default=INTERCEPTIONS, help="how many; 3.5 rows for each")
    parser.add_argument("--only", choices=("sqlite", "postgresql"), action="append")
    parser.add_argument("--json", action="store_true", help="for programs; progress is on stderr")
    options = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="aibridge-bench-") as folder:
        for place in places(options.only or ("sqlite", "postgresql"), Path(folder)):
            Bench(place, options.interceptions, results).run()
    print(as_json(results) if options.json else as_table(results))
    return int(any(result.passed is False for result in results))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
