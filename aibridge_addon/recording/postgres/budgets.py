"""What budgets need from PostgreSQL: the usage of other processes, and the reservations of all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, ClassVar

from aibridge_addon.recording.budgets import (
    GROUPS,
    NO_GROUPS,
    REQUESTS,
    USAGE,
    Kept,
    spent_of_requests,
    spent_of_usage,
)
from aibridge_addon.recording.postgres.connection import Connection
from aibridge_addon.recording.postgres.reader import PostgresConnection
from aibridge_addon.records import Spent

PATIENCE = 30.0
"""Seconds without a byte from the server after which it counts as away. No request waits for it."""
FORGET_AFTER = timedelta(hours=1)

PUBLISH = """
insert into aibridge_budget_reservations (instance_id, reserved, updated_at)
values (%(instance)s, %(reserved)s, %(now)s)
on conflict (instance_id) do update set reserved = excluded.reserved, updated_at = excluded.updated_at
"""
FORGET = """
delete from aibridge_budget_reservations
where instance_id in (
    select instance_id from aibridge_budget_reservations where updated_at < %s order by instance_id
    for update skip locked
)
"""
RESERVED = """
select entry ->> 0, entry ->> 1, sum((entry ->> 2)::float8)
from aibridge_budget_reservations as kept, jsonb_array_elements(kept.reserved) as entry
where kept.updated_at >= %s and kept.instance_id <> %s group by 1, 2
"""


class PostgresBudgets(PostgresConnection):
    """Implements `budgets.BudgetStore` with a connection of its own."""

    SETTINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"statement_timeout": "30s", "lock_timeout": "1s"})
    PATIENCE: ClassVar[float] = PATIENCE

    def __init__(self, url: str, instance_id: str) -> None:
        """Raises psycopg.ProgrammingError if libpq does not accept the URL."""
        super().__init__(url)
        self._instance_id = instance_id

    def spent(self, since: datetime, until: datetime | None, *, requests: bool, groups: bool) -> list[Spent]:
        values = {"since": since, "until": until, "instance": self._instance_id}
        parameters = {
            "since": "%(since)s::timestamptz",
            "until": "%(until)s::timestamptz",
            "instance": "%(instance)s::uuid",
            "groups": GROUPS if groups else NO_GROUPS + "::text",
        }

        def query(connection: Connection) -> list[Spent]:
            found = [spent_of_usage(row) for row in _rows(connection, USAGE.format(**parameters), values)]
            if requests:
                found += [spent_of_requests(row) for row in _rows(connection, REQUESTS.format(**parameters), values)]
            return found

        return self.use(query)

    def publish(self, reserved: Kept, now: datetime) -> None:
        entries = json.dumps([[*key, amount] for key, amount in reserved.items()]).replace("\\u0000", "\\ufffd")
        values = {"instance": self._instance_id, "reserved": entries, "now": now}

        def write(connection: Connection) -> None:
            connection.execute(PUBLISH, values)
            connection.execute(FORGET, (now - FORGET_AFTER,))

        self.use(write)

    def reserved(self, since: datetime) -> Kept:
        values = (since, self._instance_id)
        rows = self.use(lambda connection: connection.execute(RESERVED, values).fetchall())
        return {(budget, subject): float(amount) for budget, subject, amount in rows}


def _rows(connection: Connection, statement: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return connection.execute(statement.encode(), values).fetchall()
