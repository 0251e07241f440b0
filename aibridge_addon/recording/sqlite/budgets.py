"""What budgets need from SQLite: the usage of other processes, and the reservations of all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

from aibridge_addon.recording.budgets import (
    GROUPS,
    NO_GROUPS,
    REQUESTS,
    USAGE,
    Kept,
    spent_of_requests,
    spent_of_usage,
)
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite.identity import Identity
from aibridge_addon.records import DatabaseUnavailable, Spent

BUSY_TIMEOUT = 1.0
"""Seconds. The writer's transactions take milliseconds."""
FORGET_AFTER = timedelta(hours=1)

PUBLISH = """
insert into aibridge_budget_reservations (instance_id, reserved, updated_at) values (?, ?, ?)
on conflict (instance_id) do update set reserved = excluded.reserved, updated_at = excluded.updated_at
"""
FORGET = "delete from aibridge_budget_reservations where updated_at < ?"
RESERVED = """
select json_extract(entry.value, '$[0]'), json_extract(entry.value, '$[1]'), sum(json_extract(entry.value, '$[2]'))
from aibridge_budget_reservations as kept, json_each(kept.reserved) as entry
where kept.updated_at >= ? and kept.instance_id <> ? group by 1, 2
"""


class SqliteBudgets:
    """Implements `budgets.BudgetStore` with a connection that is opened when it is needed first."""

    def __init__(self, path: Path, instance_id: str) -> None:
        self._path = path
        self._instance_id = instance_id
        self._db: sqlite3.Connection | None = None
        self._file: Identity | None = None

    def spent(self, since: datetime, until: datetime | None, *, requests: bool, groups: bool) -> list[Spent]:
        values = {
            "since": timestamp(since),
            "until": until and timestamp(until),
            "instance": self._instance_id,
        }
        parameters = {name: f":{name}" for name in values} | {"groups": GROUPS if groups else NO_GROUPS}
        with self._connected() as db:
            found = [spent_of_usage(row) for row in db.execute(USAGE.format(**parameters), values)]
            if requests:
                found += [spent_of_requests(row) for row in db.execute(REQUESTS.format(**parameters), values)]
        return found

    def publish(self, reserved: Kept, now: datetime) -> None:
        entries = json.dumps([[*key, amount] for key, amount in reserved.items()])
        with self._connected() as db:
            db.execute("begin immediate")
            with db:
                db.execute(PUBLISH, (self._instance_id, entries, timestamp(now)))
                db.execute(FORGET, (timestamp(now - FORGET_AFTER),))

    def reserved(self, since: datetime) -> Kept:
        with self._connected() as db:
            rows = db.execute(RESERVED, (timestamp(since), self._instance_id)).fetchall()
        return {(budget, subject): float(amount) for budget, subject, amount in rows}

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._file is not None and not self._file.is_at_path():
                self.close()
            if self._db is None:
                uri = f"{self._path.resolve().as_uri()}?mode=rw"
                self._db = sqlite3.connect(
                    uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
                )
                self._file = Identity(self._path)
                self._db.execute("pragma synchronous = normal")  # reservations end with the process
            yield self._db
        except (sqlite3.Error, OSError) as e:
            self.close()
            raise DatabaseUnavailable(f"{self._path}: {e}") from e

    def close(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = self._file = None
