"""Claim keys in SQLite: the first process that claims a key gets it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite.reader import SqliteConnection, SqliteReader

BUSY_TIMEOUT = 1.0
"""Seconds. The end of an answer waits for it. The writer's transactions take milliseconds."""

CLAIM = """
insert into aibridge_continuations (key, value, expires_at) values (:key, '{}', :expires_at)
on conflict (key) do update set expires_at = excluded.expires_at, value = excluded.value
where aibridge_continuations.expires_at <= :now
"""


class SqliteClaims(SqliteConnection):
    """Writes on the calling thread, with a connection that is opened at the first claim."""

    MODE: ClassVar[Literal["ro", "rw"]] = "rw"

    def __init__(self, path: Path) -> None:
        super().__init__(path, timeout=BUSY_TIMEOUT)

    def claim(self, key: str, now: datetime, expires_at: datetime) -> bool:
        values = {"key": key, "now": timestamp(now), "expires_at": timestamp(expires_at)}
        return self.use(lambda db: db.execute(CLAIM, values).rowcount == 1)


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
