"""Read continuations of earlier answers from SQLite. `store` writes them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

from aibridge_addon.recording.rows import timestamp
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


class SqliteReader:
    """Reads on the calling thread, with a read-only connection that is opened at the first read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise DatabaseUnavailable(f"{self._path}: other queries take too long")
        try:
            return self._read(keys, now)
        except (sqlite3.Error, OSError) as e:
            self._disconnect()
            raise DatabaseUnavailable(f"{self._path}: {e}") from e
        finally:
            self._lock.release()

    def _read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        found: dict[str, Stored] = {}
        left = MAX_READ
        with closing(self._connected().execute(READ, (json.dumps(list(keys)), timestamp(now)))) as rows:
            for key, text, expires_at in rows:
                value = text.encode()
                left -= len(value)
                if left < 0:
                    break
                found[key] = Stored(value, datetime.fromisoformat(expires_at))
        return found

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            uri = f"{self._path.resolve().as_uri()}?mode=ro"
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
        if self._lock.acquire(timeout=LOCK_TIMEOUT):
            try:
                self._disconnect()
            finally:
                self._lock.release()


class AsyncReader:
    """Implements `continuations.Reader` for SQLite. Every query runs on a worker thread."""

    def __init__(self, reader: SqliteReader) -> None:
        self._reader = reader

    async def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        return await asyncio.to_thread(self._reader.read, keys, now)

    def close(self) -> None:
        self._reader.close()
