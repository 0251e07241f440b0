"""Implements `recording.pruning` for PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any, Self

import psycopg

from aibridge_addon.recording.postgres import hourly_usage
from aibridge_addon.recording.postgres.connection import COMMAND_PARAMETERS, CONFLICTS, connect, parse, unavailable
from aibridge_addon.recording.postgres.migrations import migrate
from aibridge_addon.recording.postgres.queries import pyformat
from aibridge_addon.recording.pruning import Busy, Execute, Parameters

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "lock_timeout": "1s",  # writers come first
        "statement_timeout": "60s",
        "idle_in_transaction_session_timeout": "60s",
        "synchronous_commit": "off",  # what is lost in a crash is deleted again
    }
)
PATIENCE = 75.0
"""Seconds without a byte from the server after which it counts as away."""
LOCK = int.from_bytes(b"aibprune")
"""Key of the advisory lock of the process whose turn it is. The server releases it with the connection."""
LOCK_NOT_AVAILABLE = "55P03"


class PostgresPrunable:
    listed_ids = "(select value::uuid from json_array_elements_text(cast(:ids as json)) as listed (value))"
    listed_keys = "(select value from json_array_elements_text(cast(:keys as json)) as listed (value))"
    lock = " for update"
    lock_free = " for update skip locked"

    def __init__(self, url: str) -> None:
        """Raises DatabaseUnavailable, and psycopg.ProgrammingError if libpq does not accept the URL."""
        self._url = parse(url)
        with self._errors():
            self._db = connect(self._url, parameters=COMMAND_PARAMETERS, settings=SETTINGS, patience=PATIENCE)
            try:
                migrate(self._db)
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def take_turn(self) -> bool:
        return self.read("select pg_try_advisory_lock(:key)", {"key": LOCK}).fetchall() == [(True,)]

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._errors(), self._db.transaction():
            yield self._execute

    def read(self, sql: str, parameters: Parameters) -> psycopg.Cursor[tuple[Any, ...]]:
        with self._errors():
            return self._execute(sql, parameters)

    def _execute(self, sql: str, parameters: Parameters) -> psycopg.Cursor[tuple[Any, ...]]:
        return self._db.execute(pyformat(sql), parameters)

    def counted(self, interception_ids: Sequence[str]) -> AbstractContextManager[set[str]]:
        return hourly_usage.counted(self._db, interception_ids)

    def add_hourly_usage(self, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            with self._errors():
                self._db.execute(hourly_usage.ADD, [list(column) for column in zip(*rows, strict=True)])

    def tables(self) -> frozenset[str]:
        """Return the tables of the schema that the bridge writes to."""
        sql = "select tablename::text from pg_tables where schemaname = current_schema()"
        return frozenset(name for (name,) in self.read(sql, {}).fetchall())

    def give_back(self) -> int:
        return 0  # autovacuum does

    def settle(self) -> None: ...

    @property
    def shrinks(self) -> bool:
        return True

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as e:
            if e.sqlstate == LOCK_NOT_AVAILABLE or e.sqlstate in CONFLICTS:
                raise Busy(str(unavailable(self._url, e))) from e
            raise unavailable(self._url, e) from e
