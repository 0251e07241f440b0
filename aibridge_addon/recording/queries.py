"""Read rows for reports and exports: the same SQL and the same values for all databases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol, Self

OUTDATED = "The database is of an older version, or not one of the bridge: start the bridge once, which migrates it"
"""What to do if a table or a column is missing."""
NO_PARAMETERS: Mapping[str, object] = MappingProxyType({})


class Queries(Protocol):
    """One consistent view of a database: all queries see the rows that were committed before the first.

    A context manager, for one thread. It writes nothing, and it does not keep the proxy from writing.
    """

    postgres: bool
    """Whether the SQL is for PostgreSQL. Most of it is the same."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def select(self, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS) -> Iterator[dict[str, Any]]:
        """Return rows by column: sums, or few rows. In the SQL, `:name` is a parameter.

        Values are those of SQLite: ids, times (UTC, ISO 8601 with microseconds) and JSON are text, booleans are 0 or
        1, and amounts of money are floats. Raises DatabaseUnavailable, also from the iterator.
        """

    def stream(self, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS) -> Iterator[dict[str, Any]]:
        """Return any number of rows, which are read while they are used. It begins early, and takes longer in all."""


def has_table(rows: Queries, name: str) -> bool:
    """Return whether the database has a table. One that an older version made may lack it."""
    sql = "select to_regclass(:name) is not null as found" if rows.postgres else IN_SQLITE
    return any(row["found"] for row in rows.select(sql, {"name": name}))


IN_SQLITE = "select exists (select 1 from sqlite_master where type = 'table' and name = :name) as found"
