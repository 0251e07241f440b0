"""Implements `recording.queries` for SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from aibridge_addon.recording.queries import NO_PARAMETERS
from aibridge_addon.recording.sqlite.connection import connect
from aibridge_addon.recording.sqlite.errors import unavailable

BUSY_TIMEOUT = 10.0
"""Seconds. In WAL mode a reader waits only for a recovery."""


class SqliteQueries:
    postgres = False

    def __init__(self, path: Path) -> None:
        """Raises DatabaseUnavailable if there is no such file."""
        self._path = path
        try:
            self._db = connect(path.resolve(strict=True), mode="ro", timeout=BUSY_TIMEOUT)
        except (sqlite3.Error, OSError) as e:
            raise unavailable(self._path, e) from e
        self._db.row_factory = sqlite3.Row

    def __enter__(self) -> Self:
        try:
            self._db.execute("begin")
        except sqlite3.Error as e:
            self._db.close()
            raise unavailable(self._path, e) from e
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error):
            self._db.close()

    def select(self, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS) -> Iterator[dict[str, Any]]:
        try:
            rows = self._db.execute(sql, dict(parameters))
            yield from map(dict, rows)
        except sqlite3.Error as e:
            raise unavailable(self._path, e) from e

    stream = select
