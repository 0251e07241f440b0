"""An SQLite file and a PostgreSQL database as tests see them: the same stores, readers and rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from aibridge_addon.recording.expiry import Expiry
from aibridge_addon.recording.postgres.claims import PostgresLedger
from aibridge_addon.recording.postgres.mcp_logins import PostgresMcpLogins
from aibridge_addon.recording.postgres.pruning import PostgresPrunable
from aibridge_addon.recording.postgres.reader import PostgresReader
from aibridge_addon.recording.postgres.store import PostgresStore
from aibridge_addon.recording.postgres.tokens import PostgresTokens
from aibridge_addon.recording.postgres.tool_pins import PostgresToolPins
from aibridge_addon.recording.pruning import Deleted, Pace, Prunable, expired, run
from aibridge_addon.recording.reader import BlockingLedger, BlockingReader
from aibridge_addon.recording.recorder import Store
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite.claims import SqliteLedger
from aibridge_addon.recording.sqlite.mcp_logins import SqliteMcpLogins
from aibridge_addon.recording.sqlite.pruning import SqlitePrunable
from aibridge_addon.recording.sqlite.reader import SqliteReader
from aibridge_addon.recording.sqlite.store import SqliteStore
from aibridge_addon.recording.sqlite.tokens import SqliteTokens
from aibridge_addon.recording.sqlite.tool_pins import SqliteToolPins
from aibridge_addon.recording.tokens import TokenStore
from aibridge_addon.recording.tool_pins import ToolPinStore
from aibridge_addon.records import Record, utc_now
from aibridge_addon.records.mcp_logins import McpLoginStore
from tests.support import database
from tests.support.database import Row, Table
from tests.support.polling import poll_until
from tests.support.postgres import PostgresServer
from tests.support.reading import NOON

Now = Callable[[], datetime]


@dataclass
class SqliteDatabase:
    path: Path
    url: str = field(init=False)

    def __post_init__(self) -> None:
        self.url = f"sqlite:///{self.path}"

    def store(self, *, durable: bool = True, now: Now = utc_now) -> Store:
        return SqliteStore(self.path, durable=durable, now=now)

    def reader(self) -> BlockingReader:
        return SqliteReader(self.path)

    def ledger(self) -> BlockingLedger:
        return SqliteLedger(self.path)

    def prunable(self, now: Now = utc_now) -> Prunable:
        return SqlitePrunable(self.path, now)

    def tokens(self) -> TokenStore:
        return SqliteTokens(self.path)

    def tool_pins(self) -> ToolPinStore:
        return SqliteToolPins(self.path)

    def mcp_logins(self) -> McpLoginStore:
        return SqliteMcpLogins(self.path)

    def rows(self, table: Table) -> list[Row]:
        """Return a table's rows in the order of their insertion."""
        return database.read_table(self.path, table)

    def query(self, sql: str) -> list[Row]:
        return database.query(self.path, sql)

    def execute(self, statement: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(statement)

    def stored(self, row: Row) -> Row:
        """Return the row that is expected for a record."""
        return row


@dataclass
class PostgresDatabase:
    server: PostgresServer
    name: str
    url: str = field(init=False)

    def __post_init__(self) -> None:
        self.url = self.server.url(self.name)

    def store(self, *, durable: bool = True, now: Now | None = None) -> PostgresStore:
        return PostgresStore(self.url, durable=durable, now=now)

    def reader(self) -> PostgresReader:
        return PostgresReader(self.url)

    def ledger(self) -> PostgresLedger:
        return PostgresLedger(self.url)

    def prunable(self, now: Now = utc_now) -> Prunable:
        return PostgresPrunable(self.url)

    def tokens(self) -> TokenStore:
        return PostgresTokens(self.url)

    def tool_pins(self) -> ToolPinStore:
        return PostgresToolPins(self.url)

    def mcp_logins(self) -> McpLoginStore:
        return PostgresMcpLogins(self.url)

    def via(self, port: int) -> PostgresDatabase:
        """Return the same database behind another port."""
        there = replace(self)
        there.url = self.url.replace(f":{self.server.port}/", f":{port}/")
        return there

    def rows(self, table: Table) -> list[Row]:
        """Return a table's rows in the order of their insertion, with the values that SQLite has."""
        return self.query(f"select * from {table} order by ctid")

    def query(self, sql: str, *parameters: object) -> list[Row]:
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            found = connection.execute(sql, parameters or None).fetchall()
            return [{column: _plain(value) for column, value in row.items()} for row in found]

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def connections(self) -> int:
        """Return the number of clients that are connected."""
        sql = f"select count(*) from pg_stat_activity where datname = '{self.name}'"
        return int(self.server.administrate(sql)[0][0])

    def wait_for_connections(self, number: int) -> None:
        """Wait until so many clients are connected: a server's process ends after its client has closed."""
        poll_until(lambda: self.connections() == number, what=f"{number} connections")

    def waits(self) -> bool:
        """Return whether a transaction waits for another one."""
        sql = f"select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = '{self.name}'"
        return bool(self.server.administrate(sql))

    def stored(self, row: Row) -> Row:
        """Return the row that is expected for a record of Anthropic's.

        The character NUL has no place in PostgreSQL. Metadata has what Coder's dashboard sums up.
        """
        expected: Row = json.loads(json.dumps(row).replace("\\u0000", "\\ufffd"))
        if "cache_read_input_tokens" in row:
            expected["metadata"] |= {
                "cache_read_input": row["cache_read_input_tokens"],
                "cache_creation_input": row["cache_write_input_tokens"],
            }
        return expected


Database = SqliteDatabase | PostgresDatabase


def interceptions(place: Database) -> dict[str, Row]:
    return {row["id"]: row for row in place.rows("aibridge_interceptions")}


def write(place: Database, *batch: Record) -> None:
    """Write records as one process does, from its start to its end."""
    with opened(place) as store:
        store.write(batch)


def prune(
    place: Database, now: datetime, *, rows: timedelta | None = None, content: timedelta | None = None
) -> Deleted:
    """Delete what has expired at a time, as one process does, without pauses."""
    expiry = Expiry.after(now, rows=rows, content=content)
    with place.prunable(lambda: now) as database:
        assert database.take_turn()
        return run(database, expired(expiry, database.tables()), Pace(clock=lambda: 0.0, wait=lambda _: False))


@contextmanager
def opened(place: Database) -> Iterator[Store]:
    store = place.store(now=lambda: NOON)
    store.open()
    try:
        yield store
    finally:
        store.close()


def _plain(value: Any) -> Any:
    match value:
        case UUID():
            return str(value)
        case datetime():
            return timestamp(value)
        case Decimal():
            return float(value)
    return value


def batches(chain: Sequence[Record], *, together: bool) -> list[list[Record]]:
    """Return the records as one batch, or each as a batch of its own."""
    return [list(chain)] if together else [[record] for record in chain]
