"""Read continuations of earlier answers from SQLite. `store` writes them."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite.connection import connect
from aibridge_addon.recording.sqlite.identity import Identity
from aibridge_addon.records import DatabaseUnavailable, Stored

BUSY_TIMEOUT = 0.25
"""Seconds. Short, because a request waits for it. In WAL mode a reader waits only for a recovery."""
LOCK_TIMEOUT = 1.0
"""Seconds. Maximum time that a thread waits for the query of another thread."""
MAX_READ = 32 * 2**20
"""Bytes. Maximum size of all values of one read. It is the default of `limits.request_body`."""

READ = """
select key, value, expires_at from aibridge_continuations
where key in (select value from json_each(?)) and expires_at > ?
"""


class SqliteConnection:
    """One connection for several threads. It is opened at the first query, and again if the file was replaced."""

    MODE: ClassVar[Literal["ro", "rw"]] = "ro"

    def __init__(self, path: Path, *, timeout: float | None = None) -> None:
        """`timeout`: seconds that a query waits for a lock. None: `BUSY_TIMEOUT`."""
        self._path = path
        self._timeout = BUSY_TIMEOUT if timeout is None else timeout
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._file: Identity | None = None

    def use[Result](self, query: Callable[[sqlite3.Connection], Result]) -> Result:
        """Return the result of a query. Raises DatabaseUnavailable."""
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise DatabaseUnavailable(f"{self._path}: other queries take too long")
        try:
            return query(self._connected())
        except (sqlite3.Error, OSError) as e:
            self._disconnect()
            raise DatabaseUnavailable(f"{self._path}: {e}") from e
        finally:
            self._lock.release()

    def _connected(self) -> sqlite3.Connection:
        if self._file is not None and not self._file.is_at_path():
            self._disconnect()
        if self._db is None:
            self._db = self._opened()
            self._file = Identity(self._path)
        return self._db

    def _opened(self) -> sqlite3.Connection:
        return connect(self._path, mode=self.MODE, timeout=self._timeout, check_same_thread=False)

    def _disconnect(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = self._file = None

    def close(self) -> None:
        if self._lock.acquire(timeout=LOCK_TIMEOUT):
            try:
                self._disconnect()
            finally:
                self._lock.release()


class SqliteReader(SqliteConnection):
    """Reads on the calling thread."""

    def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        return self.use(lambda db: _read(db, keys, now))


def _read(db: sqlite3.Connection, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
    found: dict[str, Stored] = {}
    left = MAX_READ
    with closing(db.execute(READ, (json.dumps(list(keys)), timestamp(now)))) as rows:
        for key, text, expires_at in rows:
            value = text.encode()
            left -= len(value)
            if left < 0:
                break
            found[key] = Stored(value, datetime.fromisoformat(expires_at))
    return found
