"""What budgets need from SQLite: the usage of other processes, and the reservations of all."""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar, Literal

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
from aibridge_addon.recording.sqlite.reader import SqliteConnection
from aibridge_addon.records import Spent

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


class SqliteBudgets(SqliteConnection):
    """Implements `budgets.BudgetStore` with a connection of its own."""

    MODE: ClassVar[Literal["ro", "rw"]] = "rw"

    def __init__(self, path: Path, instance_id: str) -> None:
        super().__init__(path, timeout=BUSY_TIMEOUT)
        self._instance_id = instance_id

    def spent(self, since: datetime, until: datetime | None, *, requests: bool, groups: bool) -> list[Spent]:
        values = {
            "since": timestamp(since),
            "until": until and timestamp(until),
            "instance": self._instance_id,
        }
        parameters = {name: f":{name}" for name in values} | {"groups": GROUPS if groups else NO_GROUPS}

        def query(db: sqlite3.Connection) -> list[Spent]:
            found = [spent_of_usage(row) for row in db.execute(USAGE.format(**parameters), values)]
            if requests:
                found += [spent_of_requests(row) for row in db.execute(REQUESTS.format(**parameters), values)]
            return found

        return self.use(query)

    def publish(self, reserved: Kept, now: datetime) -> None:
        entries = json.dumps([[*key, amount] for key, amount in reserved.items()])

        def write(db: sqlite3.Connection) -> None:
            db.execute("begin immediate")
            with db:
                db.execute(PUBLISH, (self._instance_id, entries, timestamp(now)))
                db.execute(FORGET, (timestamp(now - FORGET_AFTER),))

        self.use(write)

    def reserved(self, since: datetime) -> Kept:
        values = (timestamp(since), self._instance_id)
        rows = self.use(lambda db: db.execute(RESERVED, values).fetchall())
        return {(budget, subject): float(amount) for budget, subject, amount in rows}

    def _opened(self) -> sqlite3.Connection:
        db = super()._opened()
        db.execute("pragma synchronous = normal")  # reservations end with the process
        return db
