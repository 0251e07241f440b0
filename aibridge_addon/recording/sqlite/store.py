"""Store records in SQLite: one file in WAL mode, one connection that writes."""

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
"""Milliseconds. Maximum time that SQLite waits for the lock of another writer."""
BUSY_INTERVAL = 0.01
"""Seconds between attempts to enable WAL, for which SQLite does not wait by itself."""

INTERCEPTIONS = "aibridge_interceptions"
ROWS_AT_ONCE = (64, 16, 4, 1)
"""Rows of one insert statement. A few sizes only, so that all statements fit into the connection's statement cache."""

FIND_THREAD = """
select interception.id, coalesce(interception.thread_root_id, interception.id), interception.session_id
from aibridge_threads as thread
join aibridge_interceptions as interception on interception.id = thread.interception_id
where thread.key = ?
"""
"""Find the interception that a request continues, its root and its session. All by primary keys."""
NOTE_THREAD = """
insert into aibridge_threads (key, interception_id, created_at) values (?, ?, ?)
on conflict (key) do update set interception_id = excluded.interception_id, created_at = excluded.created_at
where excluded.created_at >= aibridge_threads.created_at
"""
"""Ids repeat. The newest interception with the same key counts."""
THREADS_KEPT_FOR = timedelta(days=30)
"""Results come within a session."""
FORGET_THREADS = """
delete from aibridge_threads
where key in (select key from aibridge_threads where created_at <= ? order by created_at limit ?)
"""

SET_RESULT = """
update aibridge_tool_usages set result = :result, metadata = json_patch(metadata, :metadata)
where interception_id = coalesce(
    :parent_id, (select thread_parent_id from aibridge_interceptions where id = :interception_id)
)
and +provider_tool_call_id = :call_id and injected = 0 and result is null
"""
"""Only calls of the thread's parent are updated. `+` leaves the index of call ids unused, because they repeat."""

KEEP = """
insert into aibridge_continuations (key, value, expires_at) values (:key, :value, :expires_at)
on conflict (key) do update set value = excluded.value, expires_at = excluded.expires_at
"""
PURGE = """
delete from aibridge_continuations
where key in (select key from aibridge_continuations where expires_at <= ? order by expires_at limit ?)
returning case when value like '{"background":%' then json_extract(value, '$.background') end
"""
FAIL_UNFINISHED = """
update aibridge_interceptions
set ended_at = ?, status = 'failed', error_type = ?, error_message = ?
where id = ? and ended_at is null
"""
BACKGROUND_UNFINISHED = "background_unfinished"
UNFINISHED = "the end of the background response was not read in time"
PURGE_INTERVAL = timedelta(minutes=10)
PURGE_BATCH = 100
"""Maximum number of rows that one transaction deletes. A row may have 2 MiB."""


class SqliteStore:
    """Implements `recorder.Store` for SQLite."""

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
            records.Answer: ("aibridge_answers", rows.answer),
            records.ModelThought: ("aibridge_model_thoughts", rows.model_thought),
        }

    def open(self) -> None:
        # A slow import (0.15 s), so it runs on the writer thread while other parts start.
        from sqlite_utils import Database

        from aibridge_addon.recording.sqlite.migrations import migrate

        try:
            db = self._db = Database(self._path)
            db.execute(f"pragma busy_timeout = {BUSY_TIMEOUT_MS}")
            _enable_wal(db)
            # With `full`, a commit survives a power failure. In WAL mode that costs one fsync per commit.
            db.execute(f"pragma synchronous = {'full' if self._durable else 'normal'}")
            migrate(db)
        except (sqlite3.Error, OSError) as e:
            self.close()
            raise DatabaseUnavailable(f"{self._path}: {e}") from e

    def write(self, batch: Sequence[records.Record]) -> None:
        assert self._db is not None
        try:
            # The transaction reads threads before it writes. Begun as a reader, it would fail at its first write if
            # another process had written meanwhile (SQLITE_BUSY_SNAPSHOT).
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
        """Collect rows by table and insert them. An interception that starts and ends in the batch is one insert."""
        started: dict[str, Row] = {}
        ended: list[Row] = []
        children: defaultdict[str, list[Row]] = defaultdict(list)
        for record in batch:
            if isinstance(record, records.InterceptionStarted):
                if record.thread_keys:
                    _flush(db, started, ended, children)  # what it continues may be in the same batch
                started[record.id] = rows.started(record, _thread(db, record))
            elif isinstance(record, records.InterceptionEnded):
                row = rows.ended(record)
                _note(db, record.thread_keys, record.interception_id, record.ended_at)
                if record.interception_id in started:
                    started[record.interception_id] |= {c: v for c, v in row.items() if v is not None or c not in KEPT}
                    started[record.interception_id]["model"] = (
                        started[record.interception_id]["model"] or record.model or ""
                    )
                else:
                    ended.append(row | {"id": record.interception_id, "model": record.model})
            elif isinstance(record, records.ToolResult):
                parent_id = started.get(record.interception_id, {}).get("thread_parent_id")
                db.execute(SET_RESULT, rows.tool_result(record, parent_id))
            elif isinstance(record, records.Continuation):
                db.execute(KEEP, rows.continuation(record))
            elif (child := self._children.get(type(record))) is not None:
                table, build = child
                children[table].append(build(record))
                if isinstance(record, records.ToolUsage):
                    _note(db, record.thread_keys, record.interception_id, record.created_at)
        _flush(db, started, ended, children)

    def _purge(self, db: sqlite3.Connection) -> None:
        """Delete what has expired every `PURGE_INTERVAL`, and with every batch while there is more of it.

        Background responses among it have failed.
        """
        now = self._now()
        if now >= self._purge_at:
            deleted = db.execute(PURGE, (timestamp(now), PURGE_BATCH)).fetchall()
            unfinished = [
                (timestamp(now), BACKGROUND_UNFINISHED, UNFINISHED, id) for (id,) in deleted if id is not None
            ]
            db.executemany(FAIL_UNFINISHED, unfinished)
            old = db.execute(FORGET_THREADS, (timestamp(now - THREADS_KEPT_FOR), PURGE_BATCH)).rowcount
            self._purge_at = now if PURGE_BATCH in (len(deleted), old) else now + PURGE_INTERVAL


def _enable_wal(db: Database) -> None:
    """Switch a new file to WAL mode.

    If several processes do so at the same time, SQLite reports "locked" to some without waiting.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            return db.enable_wal()
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(BUSY_INTERVAL)


def _thread(db: sqlite3.Connection, record: records.InterceptionStarted) -> Thread:
    """Return the place in a thread, by the first key under which an interception is found."""
    for key in record.thread_keys:
        if (found := db.execute(FIND_THREAD, (key,)).fetchone()) is not None:
            return Thread(*found)
    return Thread()


def _note(db: sqlite3.Connection, keys: Sequence[str], interception_id: str, at: datetime) -> None:
    """Keep the keys under which a later request finds an interception."""
    db.executemany(NOTE_THREAD, [(key, interception_id, timestamp(at)) for key in keys])


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
    """Insert rows with the same columns, many with one statement. Each statement releases the GIL, which costs time."""
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
