"""Connect to PostgreSQL, and decide what its errors mean.

A bridge has at most `MAX_CONNECTIONS` connections: the store's, the reader's, the ledger's, the tokens', and for a
while every ten minutes the pruner's. With budgets, there is one more. TLS and all else that libpq can do is set in the
URL (`?sslmode=verify-full&sslrootcert=…`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Json

from aibridge_addon.recording.queries import OUTDATED
from aibridge_addon.records import DatabaseUnavailable

MAX_CONNECTIONS = 5
"""Connections of one bridge. The server's `max_connections` limits how many processes can share it."""
PARAMETERS: Mapping[str, Any] = MappingProxyType(
    {
        "fallback_application_name": "aibridge",
        "client_encoding": "UTF8",
        "keepalives_idle": 30,  # seconds
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
)
"""Parameters of libpq for every connection. Those of the URL count before them."""

COMMAND_PARAMETERS: Mapping[str, Any] = MappingProxyType(
    {"connect_timeout": 10, "tcp_user_timeout": 30_000, "target_session_attrs": "read-write"}
)
"""Those of what changes rows without a request that waits for it: seconds, milliseconds, and no standby."""

CONFLICTS = frozenset({"40001", "40P01", "23505"})
"""Codes of a transaction that has to be repeated: serialization failure, deadlock, unique violation.

All statements accept rows that are there already, unless the transaction has seen before that they are not.
"""
REFUSALS = ("22", "23", "54")
"""Classes of codes that concern the data: data exception, integrity constraint violation, program limit exceeded."""


class Silence(psycopg.OperationalError):
    """The server does not answer."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that does not wait without end for a server that hangs, or a network that is gone."""

    patience: float | None = None
    """Seconds of silence after which the connection is closed. None: no limit, as for a migration."""

    def wait[Result](self, gen: PQGen[Result], *args: Any, **kwargs: Any) -> Result:
        return super().wait(self._until_silence(gen), *args, **kwargs)

    def _until_silence[Result](self, gen: PQGen[Result]) -> PQGen[Result]:
        """Run a generator of psycopg, which resumes it with 0 every 0.1 seconds while nothing arrives or leaves."""
        heard = time.monotonic()
        try:
            state = next(gen)
            while True:
                ready = yield state
                if ready:
                    heard = time.monotonic()
                elif self.patience is not None and time.monotonic() - heard > self.patience:
                    self.pgconn.finish()
                    raise Silence(f"the server has not answered for {self.patience:g} seconds")
                state = gen.send(ready)
        except StopIteration as e:
            result: Result = e.value
            return result


def parse(url: str) -> Mapping[str, Any]:
    """Return the parameters of a URL.

    Raises:
        psycopg.ProgrammingError: libpq does not accept the URL. The message may contain the password.
    """
    return conninfo_to_dict(url)


def connect(
    url: Mapping[str, Any], *, parameters: Mapping[str, Any], settings: Mapping[str, str], patience: float
) -> Connection:
    """Connect in autocommit mode.

    `parameters` are of libpq, and those of the URL count before them. `settings` are the session's.
    """
    merged = {**PARAMETERS, **parameters, **url}
    connection = Connection.connect(autocommit=True, **merged)
    connection.patience = patience
    try:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise psycopg.NotSupportedError(f"the database has the encoding {encoding}, it has to be UTF8")
        connection.execute(
            "select set_config(name, value, false) from json_each_text(%s) as setting (name, value)",
            [Json(dict(settings))],
        )
    except BaseException:
        connection.close()
        raise
    return connection


def refuses(error: psycopg.Error) -> bool:
    """Return whether the database is there and does not accept the data, now or later.

    Every other error means that it is away: it restarts, is read-only, has no connection or no space left, lacks a
    table. Its records wait, because an administrator can correct that.
    """
    return error.sqlstate is not None and error.sqlstate.startswith(REFUSALS)


def unavailable(url: Mapping[str, Any], error: psycopg.Error) -> DatabaseUnavailable:
    """Return the exception for an error. It names the database, and never the password."""
    place = f"{url.get('host', 'localhost')}/{url.get('dbname', '')}"
    said = " ".join(str(error).split())
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        said = f"{error.diag.message_primary or said}. {OUTDATED}"  # without the statement
    return DatabaseUnavailable(f"PostgreSQL {place}: {said}")
