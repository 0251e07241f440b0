"""Implements `recording.repricing.Prices` for SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Self

from aibridge_addon.recording.repricing import Change
from aibridge_addon.recording.sqlite.connection import connect
from aibridge_addon.recording.sqlite.hourly_usage import counted
from aibridge_addon.records import DatabaseUnavailable

BUSY_TIMEOUT = 30.0
"""Seconds. Maximum time that a transaction waits for the lock of another writer."""
SET_PRICE = """
update aibridge_token_usages
set cost_usd = :cost_usd, cost_source = :cost_source, price_list = :price_list, unpriced = :unpriced
where id = :id and (cost_source is null or cost_source <> 'provider')
"""


class SqlitePrices:
    def __init__(self, path: Path) -> None:
        """Raises DatabaseUnavailable if there is no such file."""
        self._path = path
        try:
            self._db = connect(path.resolve(strict=True), mode="rw", timeout=BUSY_TIMEOUT)
        except (sqlite3.Error, OSError) as e:
            raise DatabaseUnavailable(f"{path}: {e}") from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error):
            self._db.close()

    def write(self, changes: Sequence[Change]) -> None:
        try:
            self._db.execute("begin immediate")
            with self._db, counted(self._db, [change.interception_id for change in changes]):
                self._db.executemany(SET_PRICE, [asdict(change) for change in changes])
        except sqlite3.Error as e:
            raise DatabaseUnavailable(f"{self._path}: {e}") from e
