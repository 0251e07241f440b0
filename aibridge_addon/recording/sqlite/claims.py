"""Claim keys in SQLite: the first process that claims a key gets it."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite.reader import SqliteReader
from aibridge_addon.records import DatabaseUnavailable

BUSY_TIMEOUT = 1.0
"""Seconds. The end of an answer waits for it. The writer's transactions take milliseconds."""

CLAIM = """
insert into aibridge_continuations (key, value, expires_at) values (:key, '{}', :expires_at)
on conflict (key) do update set expires_at = excluded.expires_at, value = excluded.value
where aibridge_continuations.expires_at <= :now
"""


class SqliteClaims:
    """Writes on the calling thread, with a connection that is opened at the first claim."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def claim(self, key: str, now: datetime, expires_at: datetime) -> bool:
        if not self._lock.acquire(timeout=BUSY_TIMEOUT):
            raise DatabaseUnavailable(f"{self._path}: other claims take too long")
        try:
            values = {"key": key, "now": timestamp(now), "expires_at": timestamp(expires_at)}
            return self._connected().execute(CLAIM, values).rowcount == 1
        except (sqlite3.Error, OSError) as e:
            self._disconnect()
            raise DatabaseUnavailable(f"{self._path}: {e}") from e
        finally:
            self._lock.release()

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            uri = f"{self._path.resolve().as_uri()}?mode=rw"
            self._db = sqlite3.connect(
                uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
        return self._db

    def _disconnect(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def close(self) -> None:
        if self._lock.acquire(timeout=BUSY_TIMEOUT):
            try:
                self._disconnect()
            finally:
                self._lock.release()


class SqliteLedger(SqliteReader):
    """Reads and claims, each with a connection of its own."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._claims = SqliteClaims(path)

    def claim(self, key: str, now: datetime, expires_at: datetime) -> bool:
        return self._claims.claim(key, now, expires_at)

    def close(self) -> None:
        super().close()
        self._claims.close()
