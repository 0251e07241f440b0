"""Read continuations of earlier answers from PostgreSQL. `store` writes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar

import psycopg

from aibridge_addon.recording.postgres.connection import Connection, Silence, connect, parse, unavailable
from aibridge_addon.records import DatabaseUnavailable, Stored

PARAMETERS: Mapping[str, Any] = MappingProxyType(
    {
        "connect_timeout": 2,  # seconds; short, because a request waits for it
        "tcp_user_timeout": 2_000,  # milliseconds
        "target_session_attrs": "read-write",  # a standby may not have the newest rows yet
    }
)
PATIENCE = 2.0
"""Seconds without a byte from the server after which it counts as away. A query takes 1 second at most."""
LOCK_TIMEOUT = 1.0
"""Seconds. Maximum time that a thread waits for the query of another thread."""
REST = 5.0
"""Seconds. After a failure, requests do not wait for the database for this long."""
MAX_READ = 32 * 2**20
"""Bytes. Maximum size of all values of one read. It is the default of `limits.request_body`."""

READ = """
select key, value, expires_at from (
    select key, value, expires_at, sum(octet_length(value)) over (order by key) as size
    from aibridge_continuations where key = any(%s) and expires_at > %s
) as found where size <= %s
"""


class PostgresConnection:
    """One connection for several threads, which is made at the first query and again after a restart of the server."""

    PATIENCE: ClassVar[float] = PATIENCE
    SETTINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"default_transaction_read_only": "on", "statement_timeout": "1s"}
    )

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises psycopg.ProgrammingError if libpq does not accept the URL."""
        self._url = parse(url)
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._failed_at: float | None = None

    def use[Result](self, query: Callable[[Connection], Result]) -> Result:
        """Return the result of a query that may be repeated. Raises DatabaseUnavailable."""
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise DatabaseUnavailable("PostgreSQL: other queries take too long")
        try:
            if self._failed_at is not None and self._clock() < self._failed_at + REST:
                raise DatabaseUnavailable(f"PostgreSQL: no new attempt within {REST:g} seconds of a failed one")
            result = self._use_now(query)
            self._failed_at = None
            return result
        except psycopg.Error as e:
            self._failed_at = self._clock()
            self._disconnect()
            raise unavailable(self._url, e) from e
        finally:
            self._lock.release()

    def _use_now[Result](self, query: Callable[[Connection], Result]) -> Result:
        used_before = self._connection is not None
        connection = self._connected()
        try:
            return query(connection)
        except psycopg.Error as e:
            if not (used_before and connection.closed) or isinstance(e, Silence):
                raise
            self._disconnect()  # the server has restarted since the last query
            return query(self._connected())

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self._url, parameters=PARAMETERS, settings=self.SETTINGS, patience=self.PATIENCE)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        if self._lock.acquire(timeout=LOCK_TIMEOUT):
            try:
                self._disconnect()
            finally:
                self._lock.release()


class PostgresReader(PostgresConnection):
    """Reads on the calling thread."""

    def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        values = (list(keys), now, MAX_READ)
        rows = self.use(lambda connection: connection.execute(READ, values).fetchall())
        return {key: Stored(value.encode(), expires_at) for key, value, expires_at in rows}
