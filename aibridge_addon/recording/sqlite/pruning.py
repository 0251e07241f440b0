"""Implements `recording.pruning` for SQLite."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aibridge_addon.recording.pruning import Busy, Execute, Parameters
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite import hourly_usage
from aibridge_addon.recording.sqlite.connection import SECURE_DELETE, connect
from aibridge_addon.recording.sqlite.errors import description
from aibridge_addon.records import DatabaseUnavailable, utc_now

BUSY_TIMEOUT = 1.0
"""Seconds. Maximum time that a transaction waits for the lock of another writer."""
BUSY_INTERVAL = 0.002
"""Seconds between its attempts."""
VACUUM_TIMEOUT = 30.0
"""Seconds. The same for `vacuum`."""
LEASE = timedelta(seconds=60)
"""A process that deletes rows and gives no sign of life for this long has lost its turn."""
PORTION = 1_000
"""Pages that are given back with one transaction: 4 MB, some ten milliseconds."""
INCREMENTAL = 2
"""Value of `pragma auto_vacuum` for files whose free pages can be given back."""

TAKE_TURN = """
insert into _aibridge_leases (name, owner, expires_at) values ('pruning', :owner, :expires_at)
on conflict (name) do update set owner = excluded.owner, expires_at = excluded.expires_at
where owner = excluded.owner or expires_at <= :now or expires_at > :wrong
"""
"""A lease that ends much later than a new one is of a clock that was wrong."""

ANALYZED_ROWS = 400
"""Rows of each index that statistics are made of. Without any, SQLite reads all rows of a table for some reports."""


class SqlitePrunable:
    listed_ids = "(select value from json_each(:ids))"
    listed_keys = "(select value from json_each(:keys))"
    lock = lock_free = ""  # the transaction locks the whole file

    def __init__(self, path: Path, now: Callable[[], datetime] = utc_now) -> None:
        """Raises DatabaseUnavailable if there is no such file."""
        self._path = path
        self._now = now
        self._owner = str(uuid.uuid4())
        self._has_turn = False
        with self._errors():
            _migrate(path)
            self._db = connect(path, mode="rw", timeout=0)
            self._db.execute(SECURE_DELETE)
            self._db.execute("pragma synchronous = normal")  # what is lost in a power failure is deleted again

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error):
            if self._has_turn:
                self._db.execute("delete from _aibridge_leases where owner = ?", (self._owner,))
        self._db.close()

    def take_turn(self) -> bool:
        with self._writing():
            self._has_turn = self._lease()
        return self._has_turn

    def _lease(self) -> bool:
        now = self._now()
        times = {"now": now, "expires_at": now + LEASE, "wrong": now + 10 * LEASE}
        return self.read(TAKE_TURN, {"owner": self._owner, **times}).rowcount == 1

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._writing():
            if not self._lease():
                raise Busy(f"{self._path}: another process deletes rows now")
            yield self.read

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Begin a transaction when the file's lock is free.

        SQLite would wait longer and longer between its attempts, and never find the lock free under load.
        """
        ending = time.monotonic() + BUSY_TIMEOUT
        with self._errors():
            while True:
                try:
                    self._db.execute("begin immediate")
                    break
                except sqlite3.OperationalError:
                    if time.monotonic() >= ending:
                        raise
                    time.sleep(BUSY_INTERVAL)
            with self._db:
                yield

    def read(self, sql: str, parameters: Parameters) -> sqlite3.Cursor:
        with self._errors():
            return self._db.execute(sql, {name: _value(value) for name, value in parameters.items()})

    def counted(self, interception_ids: Sequence[str]) -> AbstractContextManager[None]:
        return hourly_usage.counted(self._db, interception_ids)

    def add_hourly_usage(self, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._errors():
            self._db.executemany(hourly_usage.ADD, rows)

    def tables(self) -> frozenset[str]:
        rows = self.read("select name from sqlite_master where type = 'table'", {}).fetchall()
        return frozenset(name for (name,) in rows)

    @property
    def shrinks(self) -> bool:
        """Whether free pages of this file can be given back without `vacuum`."""
        [(mode,)] = self.read("pragma auto_vacuum", {}).fetchall()
        return bool(mode == INCREMENTAL)

    def give_back(self) -> int:
        if not self.shrinks:
            return 0
        self.read(f"pragma incremental_vacuum({PORTION})", {}).fetchall()
        [(left,)] = self.read("pragma freelist_count", {}).fetchall()
        return int(left)

    def settle(self) -> None:
        """Renew the statistics for queries, and move the log into the file, unless others use it now.

        The last one that closes the file moves the log, too.
        """
        with suppress(DatabaseUnavailable):
            self.read(f"pragma analysis_limit = {ANALYZED_ROWS}", {}).fetchall()
            self.read("analyze", {})
        with suppress(DatabaseUnavailable):
            self.read("pragma wal_checkpoint(truncate)", {}).fetchall()

    def _errors(self) -> _Errors:
        return _Errors(self._path)


class _Errors:
    """Raises DatabaseUnavailable for errors of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, sqlite3.Error | OSError):
            locked = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            raise (Busy if locked else DatabaseUnavailable)(f"{self._path}: {description(error)}") from error


def vacuum(path: Path) -> None:
    """Write the whole file anew. It needs that much space, and keeps others from writing meanwhile.

    From then on, free pages can be given back without it. Raises DatabaseUnavailable.
    """
    with _Errors(path), closing(sqlite3.connect(path, timeout=VACUUM_TIMEOUT, isolation_level=None)) as db:
        db.execute(f"pragma auto_vacuum = {INCREMENTAL}")
        db.execute("vacuum")
        db.execute("pragma wal_checkpoint(truncate)").fetchall()


def _migrate(path: Path) -> None:
    """Bring the schema up to date, because the proxy may not have done so. Never creates a file."""
    from sqlite_utils import Database

    from aibridge_addon.recording.sqlite.migrations import is_outdated, migrate

    path.resolve(strict=True)
    with closing(Database(path)) as db:
        if is_outdated(db):
            migrate(db)


def _value(value: object) -> Any:
    return timestamp(value) if isinstance(value, datetime) else value
