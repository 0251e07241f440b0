"""Store records in SQLite: one file in WAL mode, one connection that writes."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from aibridge_addon import records
from aibridge_addon.recording import rows
from aibridge_addon.recording.hourly_usage import changed_interceptions
from aibridge_addon.recording.instances import Instance
from aibridge_addon.recording.rows import KEPT, Row, Thread, timestamp
from aibridge_addon.recording.sqlite.connection import SECURE_DELETE, create_private
from aibridge_addon.recording.sqlite.errors import open_error
from aibridge_addon.recording.sqlite.hourly_usage import counted
from aibridge_addon.recording.sqlite.identity import Identity
from aibridge_addon.recording.sqlite.instances import register
from aibridge_addon.records import DatabaseUnavailable, utc_now

if TYPE_CHECKING:
    from sqlite_utils import Database

logger = logging.getLogger(__name__)

BUSY_TIMEOUT_MS = 5_000
"""Milliseconds. Maximum time that the start waits for the lock of another writer."""
WRITE_TIMEOUT_MS = 2_500
"""Milliseconds. Maximum time that a transaction waits for it: less than an answer's end waits for its rows."""
MAX_LOG = 64 * 2**20
"""Bytes. The write-ahead log grows beyond it while a report or an export reads, and is cut afterwards."""
BUSY_INTERVAL = 0.01
"""Seconds between attempts to enable WAL, for which SQLite does not wait by itself."""

INTERCEPTIONS = "aibridge_interceptions"
THREADS = "aibridge_threads"
ROWS_AT_ONCE = (64, 16, 12, 8, 6, 4, 3, 2, 1)
"""Rows of one insert statement. At most two statements insert up to 16 rows, which is what answers that end together
have. A few sizes only, so that all statements fit into the connection's statement cache."""

FIND_THREAD = """
select interception.id, coalesce(interception.thread_root_id, interception.id), interception.session_id
from aibridge_threads as thread
join aibridge_interceptions as interception on interception.id = thread.interception_id
where thread.key = ?
"""
"""Find the interception that a request continues, its root and its session. All by primary keys."""
NEWEST = """(key) do update set interception_id = excluded.interception_id, created_at = excluded.created_at
where excluded.created_at >= aibridge_threads.created_at"""
"""Ids repeat. The newest interception with the same key counts."""
KNOWN = "(id) do nothing"
SET_RESULT = """
update aibridge_tool_usages set result = :result,
metadata = case when json_valid(metadata) then json_patch(metadata, :metadata) else metadata end
where interception_id = (select thread_parent_id from aibridge_interceptions where id = :interception_id)
and +provider_tool_call_id = :call_id and injected = 0 and result is null
and exists (select 1 from aibridge_interceptions where id = interception_id and content_deleted_at is null)
"""
"""Only calls of the thread's parent are updated, unless its texts were deleted.

`+` leaves the index of call ids unused, because they repeat.
"""

KEEP = """
insert into aibridge_continuations (key, value, expires_at, interception_id, initiator_id)
values (:key, :value, :expires_at, :interception_id, :initiator_id)
on conflict (key) do update
set value = excluded.value, expires_at = excluded.expires_at, interception_id = excluded.interception_id,
    initiator_id = excluded.initiator_id
"""
PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL})
"""Primary error codes after which the connection can be used again."""
MAX_BEGUN = 10_000
"""Maximum number of interceptions in progress that are written again to a new file. The oldest are forgotten."""
WRONG = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.NotSupportedError)
"""Errors of a row or a statement. All others are errors of the file."""


class SqliteStore:
    """Implements `recorder.Store` for SQLite."""

    def __init__(self, path: Path, *, durable: bool, now: Callable[[], datetime] = utc_now) -> None:
        self._path = path
        self._durable = durable
        self._now = now
        self._db: Database | None = None
        self._file: Identity | None = None
        """The file that was opened."""
        self._begun: dict[str, records.InterceptionStarted] = {}
        """Interceptions that this store has written and that have not ended."""
        self._misses_begun = False
        """Whether the file at the path may lack them, because another one was there when they were written."""

    def open(self) -> None:
        # A slow import (0.15 s), so it runs on the writer thread while other parts start.
        from sqlite_utils import Database

        from aibridge_addon.recording.sqlite.migrations import migrate

        self._misses_begun |= self._file is not None and not self._file.is_at_path()
        try:
            create_private(self._path)
            db = self._db = Database(self._path)
            db.execute(f"pragma busy_timeout = {BUSY_TIMEOUT_MS}")
            # Before the first page is written. Files of earlier versions need one `vacuum` for it. It takes the lock.
            if db.execute("pragma page_count").fetchone() == (0,):
                db.execute("pragma auto_vacuum = incremental")
            db.execute(f"pragma journal_size_limit = {MAX_LOG}")
            db.execute(SECURE_DELETE)
            _enable_wal(db)
            # With `full`, a commit survives a power failure. In WAL mode that costs one fsync per commit.
            db.execute(f"pragma synchronous = {'full' if self._durable else 'normal'}")
            migrate(db)
            db.execute(f"pragma busy_timeout = {min(WRITE_TIMEOUT_MS, BUSY_TIMEOUT_MS)}")
            self._file = Identity(self._path)
        except (sqlite3.Error, OSError) as e:
            self.close()
            raise DatabaseUnavailable(f"{self._path.absolute()}: {open_error(self._path, e)}") from e
        except DatabaseUnavailable:
            self.close()
            raise

    def write(self, batch: Sequence[records.Record]) -> None:
        with self._transaction() as db, counted(db, changed_interceptions(batch)):
            self._write(db, [*self._begun.values(), *batch] if self._misses_begun else batch)
        self._misses_begun = False
        self._remember_begun(batch)

    def _remember_begun(self, batch: Sequence[records.Record]) -> None:
        for record in batch:
            if isinstance(record, records.InterceptionStarted):
                self._begun[record.id] = record
            elif isinstance(record, records.InterceptionEnded):
                self._begun.pop(record.interception_id, None)
        while len(self._begun) > MAX_BEGUN:
            del self._begun[next(iter(self._begun))]

    def register(self, instance: Instance) -> int:
        with self._transaction() as db:
            return register(db, instance, self._now())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Begin a transaction and commit it, on a new connection if the last one had failed.

        Raises:
            DatabaseUnavailable: Nothing was committed, or it was committed to a file that is not there any more.
        """
        if self._db is None:
            self.open()
        assert self._db is not None
        db = self._db.conn
        try:
            # The transaction reads threads before it writes. Begun as a reader, it would fail at its first write if
            # another process had written meanwhile (SQLITE_BUSY_SNAPSHOT).
            db.execute("begin immediate")
            with db:
                yield db
        except WRONG:
            raise
        except sqlite3.DatabaseError as e:
            self._check_file()
            if getattr(e, "sqlite_errorcode", 0) & 0xFF not in PASSING:
                self.close()
            raise DatabaseUnavailable(f"{self._path}: {e}") from e
        self._check_file()

    def _check_file(self) -> None:
        assert self._file is not None
        if not self._file.is_at_path():
            self._misses_begun = True
            self.close()
            self._file.remove_log()
            raise DatabaseUnavailable(f"{self._path}: the file was deleted or replaced while it was in use")

    def close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _write(self, db: sqlite3.Connection, batch: Sequence[records.Record]) -> None:
        """Collect rows by table and insert them. An interception that starts and ends in the batch is one insert."""
        waiting = _Rows(db)
        started = waiting.started
        for record in batch:
            if isinstance(record, records.InterceptionStarted):
                if not waiting.noted.keys().isdisjoint(record.thread_keys):
                    waiting.write()  # it continues what is in the same batch
                started[record.id] = rows.started(record, _thread(db, record))
            elif isinstance(record, records.InterceptionEnded):
                waiting.note(record.thread_keys, record.interception_id, record.ended_at)
                if record.interception_id in started:
                    started[record.interception_id] = rows.with_end(started[record.interception_id], record)
                else:
                    waiting.ended.append(rows.ended(record) | {"id": record.interception_id, "model": record.model})
            elif isinstance(record, records.ToolResult):
                waiting.results.append(rows.tool_result(record))
            elif isinstance(record, records.Continuation):
                db.execute(KEEP, rows.continuation(record))
            elif (child := rows.INSERTED.get(type(record))) is not None:
                table, build = child
                waiting.children[table].append(build(record))
                if isinstance(record, records.ToolUsage):
                    waiting.note(record.thread_keys, record.interception_id, record.created_at)
        waiting.write()


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


class _Rows:
    """Rows of a batch that wait to be written."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.started: dict[str, Row] = {}
        """By id, interceptions that start in the batch, and may have ended."""
        self.ended: list[Row] = []
        """Ends of interceptions that were written before."""
        self.children: defaultdict[str, list[Row]] = defaultdict(list)
        """By table."""
        self.results: list[Row] = []
        """Of calls, whose rows may be in the same batch."""
        self.noted: dict[str, Row] = {}
        """By key, under which a later request finds an interception."""

    def note(self, keys: Sequence[str], interception_id: str, at: datetime) -> None:
        created_at = timestamp(at)
        for key in keys:
            if (known := self.noted.get(key)) is None or created_at >= known["created_at"]:
                self.noted[key] = {"key": key, "interception_id": interception_id, "created_at": created_at}

    def write(self) -> None:
        whole = [row for row in self.started.values() if "ended_at" in row]
        _insert(self._db, INTERCEPTIONS, [row for row in self.started.values() if "ended_at" not in row], KNOWN)
        if whole:
            _insert(self._db, INTERCEPTIONS, whole, _replaced(tuple(whole[0])))
        for table, inserted in self.children.items():
            _insert(self._db, table, inserted, KNOWN)
        if self.results:
            self._db.executemany(SET_RESULT, self.results)
        _insert(self._db, THREADS, [*self.noted.values()], NEWEST)
        if self.ended:
            assignments = ", ".join(_assignment(column) for column in self.ended[0] if column not in ("id", "model"))
            self._db.executemany(
                f"update {INTERCEPTIONS} set {assignments},"  # noqa: S608 (names are ours)
                " model = case model when '' then coalesce(:model, '') else model end where id = :id",
                self.ended,
            )
        for rows_of in self.started, self.ended, self.children, self.results, self.noted:
            rows_of.clear()


def _assignment(column: str) -> str:
    return f"{column} = coalesce(:{column}, {column})" if column in KEPT else f"{column} = :{column}"


def _insert(db: sqlite3.Connection, table: str, rows: Sequence[Row], conflict: str) -> None:
    """Insert rows with the same columns, many with one statement. Each statement releases the GIL, which costs time.

    `conflict`: what is done about a row that was written before.
    """
    left = list(rows)
    for size in ROWS_AT_ONCE:
        while len(left) >= size:
            some, left = left[:size], left[size:]
            statement = _insert_statement(table, tuple(some[0]), size, conflict)
            db.execute(statement, [value for row in some for value in row.values()])


@lru_cache(maxsize=256)
def _insert_statement(table: str, columns: tuple[str, ...], rows: int, conflict: str) -> str:
    row = "(" + ", ".join("?" * len(columns)) + ")"
    return (
        f"insert into {table} ({', '.join(columns)}) values {', '.join([row] * rows)}"  # noqa: S608 (names are ours)
        f" on conflict {conflict}"
    )


@lru_cache(maxsize=8)
def _replaced(columns: tuple[str, ...]) -> str:
    """Return what replaces a row that was written before: this one may have more."""
    return "(id) do update set " + ", ".join(f"{column} = excluded.{column}" for column in columns)
