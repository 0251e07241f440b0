"""Implements `recording.repricing.Prices` for PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Self

import psycopg

from aibridge_addon.recording.postgres.connection import COMMAND_PARAMETERS, CONFLICTS, connect, parse, unavailable
from aibridge_addon.recording.postgres.hourly_usage import counted
from aibridge_addon.recording.repricing import Change

SETTINGS: Mapping[str, str] = MappingProxyType({"lock_timeout": "30s", "statement_timeout": "60s"})
PATIENCE = 90.0
"""Seconds without a byte from the server after which it counts as away."""
ATTEMPTS = 5
SET_PRICE = b"""
update aibridge_token_usages
set cost_usd = %(cost_usd)s, cost_source = %(cost_source)s, price_list = %(price_list)s, unpriced = %(unpriced)s
where id = %(id)s::uuid and (cost_source is null or cost_source <> 'provider')
"""


class PostgresPrices:
    def __init__(self, url: str) -> None:
        """Raises DatabaseUnavailable, and psycopg.ProgrammingError if libpq does not accept the URL."""
        self._url = parse(url)
        try:
            self._connection = connect(self._url, parameters=COMMAND_PARAMETERS, settings=SETTINGS, patience=PATIENCE)
        except psycopg.Error as e:
            raise unavailable(self._url, e) from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def write(self, changes: Sequence[Change]) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._write_once(changes)
                return
            except psycopg.Error as e:
                if e.sqlstate not in CONFLICTS or attempt == ATTEMPTS:
                    raise unavailable(self._url, e) from e

    def _write_once(self, changes: Sequence[Change]) -> None:
        ids = [change.interception_id for change in changes]
        with self._connection.transaction(), counted(self._connection, ids), self._connection.cursor() as cursor:
            cursor.executemany(SET_PRICE, [_parameters(change) for change in changes])


def _parameters(change: Change) -> dict[str, Any]:
    cost = None if change.cost_usd is None else Decimal(repr(change.cost_usd))
    return {**asdict(change), "cost_usd": cost}
