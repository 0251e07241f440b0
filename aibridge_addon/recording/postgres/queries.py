"""Implements `recording.queries` for PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Buffer, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self

import psycopg
from psycopg.adapt import Loader
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.numeric import FloatLoader
from psycopg.types.string import TextLoader

from aibridge_addon.recording.postgres.connection import connect, parse, unavailable
from aibridge_addon.recording.queries import NO_PARAMETERS
from aibridge_addon.recording.rows import timestamp

PARAMETERS: Mapping[str, Any] = MappingProxyType({"connect_timeout": 10, "tcp_user_timeout": 30_000})
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "default_transaction_read_only": "on",
        "TimeZone": "UTC",
        "jit": "off",  # compiling takes longer than what it saves
    }
)
PATIENCE = 60.0
"""Seconds without a byte from the server after which it counts as away."""
ROWS_AT_ONCE = 100
"""Rows that are fetched together, and wait in memory. A row may have a prompt of several megabytes."""
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


class PostgresQueries:
    postgres = True

    def __init__(self, url: str) -> None:
        """Raises DatabaseUnavailable, and psycopg.ProgrammingError if libpq does not accept the URL."""
        self._url = parse(url)
        self._cursors = 0
        try:
            self._connection = connect(self._url, parameters=PARAMETERS, settings=SETTINGS, patience=PATIENCE)
        except psycopg.Error as e:
            raise unavailable(self._url, e) from e
        types = self._connection.adapters
        for name, loader in LOADERS.items():
            types.register_loader(name, loader)

    def __enter__(self) -> Self:
        try:
            self._connection.execute("begin isolation level repeatable read, read only")
        except psycopg.Error as e:
            self._connection.close()
            raise unavailable(self._url, e) from e
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def select(self, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS) -> Iterator[dict[str, Any]]:
        """The server does not know that rows may be read later, so it can use several processes."""
        try:
            with self._connection.cursor(row_factory=dict_row) as rows:
                yield from rows.execute(pyformat(sql), parameters)
        except psycopg.Error as e:
            raise unavailable(self._url, e) from e

    def stream(self, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS) -> Iterator[dict[str, Any]]:
        self._cursors += 1  # several may be open at once
        try:
            with self._connection.cursor(f"aibridge_{self._cursors}", row_factory=dict_row) as rows:
                rows.itersize = ROWS_AT_ONCE
                yield from rows.execute(pyformat(sql), parameters)
        except psycopg.Error as e:
            raise unavailable(self._url, e) from e


def pyformat(sql: str) -> bytes:
    """Return a statement with its parameters in the form that psycopg expects."""
    return _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%")).encode()


class _Time(TimestamptzLoader):
    def load(self, data: Buffer) -> Any:
        return timestamp(super().load(bytes(data)))


class _Number(Loader):
    def load(self, data: Buffer) -> int:
        return int(bytes(data) == b"t")


LOADERS: Mapping[str, type[Loader]] = MappingProxyType(
    {"uuid": TextLoader, "timestamptz": _Time, "jsonb": TextLoader, "json": TextLoader, "bool": _Number}
    | {"numeric": FloatLoader}
)
