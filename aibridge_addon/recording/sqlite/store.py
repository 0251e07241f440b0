"""The records in SQLite: one file, one writer connection, WAL."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aibridge_addon import records
from aibridge_addon.recording import rows
from aibridge_addon.recording.rows import KEPT, Row, Thread, timestamp
from aibridge_addon.records import DatabaseUnavailable, utc_now

if TYPE_CHECKING:
    from sqlite_utils import Database

BUSY_TIMEOUT_MS = 5_000
BUSY_INTERVAL = 0.01

INTERCEPTIONS = "aibridge_interceptions"
ROWS_AT_ONCE = (64, 16, 4, 1)
"""Rows of one statement; a few sizes, so that SQLite's cache of statements holds them all."""

FIND_THREAD = """
select interception.id, coalesce(interception.thread_root_id, interception.id)
from aibridge_tool_usages as usage
join aibridge_interceptions as interception on interception.id = usage.interception_id
where usage.provider_tool_call_id = ? and interception.initiator_id = ?
order by usage.created_at desc limit 1
"""
"""The interception that asked for a tool call, and the root of its thread: of the same user, for call ids repeat."""

KEEP = """
insert into aibridge_continuations (key, value, expires_at) values (:key, :value, :expires_at)
on conflict (key) do update set value = excluded.value, expires_at = excluded.expires_at
"""
PURGE = """
delete from aibridge_continuations
where key in (select key from aibridge_continuations where expires_at <= ? order by expires_at limit ?)
"""
PURGE_INTERVAL = timedelta(minutes=10)
PURGE_BATCH = 100
"""Rows, each of up to 2 MiB, that one transaction deletes."""


class SqliteStore:
    """See `recorder.Store`."""

    def __init__(self, path: Path, *, durable: bool, now: Callable[[], datetime] = utc_now) -> None:
        self._path = path
        self._durable = durable
        self._now = now
        self._purge_at = datetime.min.replace(tzinfo=UTC)
        self._db: Database | None = None
        self._children: dict[type, tuple[str, Callable[[Any], Row]]] = {
            records.TokenUsage: ("aibridge_token_usages", rows.token_usage),
            records.UserPrompt: ("aibridge_user_prompts", rows.user_prompt),
            records.ToolUsage: ("aibridge_tool_usages", rows.tool_usage),
            records.ModelThought: ("aibridge_model_thoughts", rows.model_thought),
        }

    def open(self) -> None:
        # Takes longer to import than all else here: on the writer thread, while others start.
        from sqlite_utils import Database

        from aibridge_addon.recording.sqlite.migrations import migrate

        try:
            db = Database(self._path)
            db.execute(f"pragma busy_timeout = {BUSY_TIMEOUT_MS}")
            _enable_wal(db)
            # A commit that must survive a power cut has to reach the disk; in WAL mode that is one fsync.
            db.execute(f"pragma synchronous = {'full' if self._durable else 'normal'}")
            migrate(db)
        except (sqlite3.Error, OSError) as e:
            raise DatabaseUnavailable(f"{self._path}: {e}") from e
        self._db = db

    def write(self, batch: Sequence[records.Record]) -> None:
        assert self._db is not None
        try:
            # Lineage is read before anything is written: a transaction that only then asked for the right to write
            # would fail at once where another process has written meanwhile (SQLITE_BUSY_SNAPSHOT).
            self._db.conn.execute("begin immediate")
            with self._db.conn:
                self._write(self._db.conn, batch)
                self._purge(self._db.conn)
        except sqlite3.OperationalError as e:
            raise DatabaseUnavailable(f"{self._path}: {e}") from e

    def close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _write(self, db: sqlite3.Connection, batch: Sequence[records.Record]) -> None:
        """Gather rows by table, in order; an interception that ends in the batch it starts in is one insert."""
        started: dict[str, Row] = {}
        ended: list[Row] = []
        children: defaultdict[str, list[Row]] = defaultdict(list)
        for record in batch:
            if isinstance(record, records.InterceptionStarted):
                if record.correlating_tool_call_id:
                    _flush(db, started, ended, children)  # the call may stand in this very batch
                started[record.id] = rows.started(record, _thread(db, record))
            elif isinstance(record, records.InterceptionEnded):
                row = rows.ended(record)
                if record.interception_id in started:
                    started[record.interception_id] |= {c: v for c, v in row.items() if v is not None or c not in KEPT}
                    started[record.interception_id]["model"] = (
                        started[record.interception_id]["model"] or record.model or ""
                    )
                else:
                    ended.append(row | {"id": record.interception_id, "model": record.model})
            elif isinstance(record, records.Continuation):
                db.execute(KEEP, rows.continuation(record))
            elif (child := self._children.get(type(record))) is not None:
                table, build = child
                children[table].append(build(record))
        _flush(db, started, ended, children)

    def _purge(self, db: sqlite3.Connection) -> None:
        """Delete expired continuations, now and then; soon again where there are more of them."""
        now = self._now()
        if now >= self._purge_at:
            deleted = db.execute(PURGE, (timestamp(now), PURGE_BATCH)).rowcount
            self._purge_at = now if deleted == PURGE_BATCH else now + PURGE_INTERVAL


def _enable_wal(db: Database) -> None:
    """Switch a new file to WAL. Of several that do so at once, SQLite tells some "locked" without waiting."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            return db.enable_wal()
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(BUSY_INTERVAL)


def _thread(db: sqlite3.Connection, record: records.InterceptionStarted) -> Thread:
    if not record.correlating_tool_call_id:
        return Thread()
    found = db.execute(FIND_THREAD, (record.correlating_tool_call_id, record.initiator_id)).fetchone()
    return Thread(*found) if found else Thread()


def _flush(
    db: sqlite3.Connection,
    started: dict[str, Row],
    ended: list[Row],
    children: defaultdict[str, list[Row]],
) -> None:
    whole = [row for row in started.values() if "ended_at" in row]
    for table, inserted in (
        (INTERCEPTIONS, [row for row in started.values() if "ended_at" not in row]),
        (INTERCEPTIONS, whole),
        *children.items(),
    ):
        _insert(db, table, inserted)
    if ended:
        assignments = ", ".join(_assignment(column) for column in ended[0] if column not in ("id", "model"))
        db.executemany(
            f"update {INTERCEPTIONS} set {assignments},"  # noqa: S608 (names are ours)
            " model = case model when '' then coalesce(:model, '') else model end where id = :id",
            ended,
        )
    started.clear()
    ended.clear()
    children.clear()


def _assignment(column: str) -> str:
    return f"{column} = coalesce(:{column}, {column})" if column in KEPT else f"{column} = :{column}"


def _insert(db: sqlite3.Connection, table: str, rows: Sequence[Row]) -> None:
    """Insert rows that have the same columns, many with one statement: each statement gives the interpreter away."""
    left = list(rows)
    for size in ROWS_AT_ONCE:
        while len(left) >= size:
            some, left = left[:size], left[size:]
            columns = tuple(some[0])
            db.execute(_insert_statement(table, columns, size), [value for row in some for value in row.values()])


@lru_cache(maxsize=64)
def _insert_statement(table: str, columns: tuple[str, ...], rows: int) -> str:
    row = "(" + ", ".join("?" * len(columns)) + ")"
    return f"insert into {table} ({', '.join(columns)}) values {', '.join([row] * rows)}"  # noqa: S608 (names are ours)
