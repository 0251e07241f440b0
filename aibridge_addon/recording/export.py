"""Write the record as JSON lines, and read it again: for a backup, or to move it to another database.

    {"format": "aibridge-export", "version": 1, "schema": "006_hourly_usage", "since": null}
    {"table": "aibridge_interceptions", "id": "…", "initiator_id": "…", …}
    …
    {"end": true, "rows": {"aibridge_interceptions": 1, …}, "sha256": "…"}

A line has the values that `recording.queries` returns. The digest is that of all lines before the last one. Parents
come before their details, so that an import can stop after any line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import IO, Any, Protocol

import msgspec

from aibridge_addon.recording.queries import Queries, has_table
from aibridge_addon.recording.rows import DETAIL_TABLES, Row, timestamp

FORMAT = "aibridge-export"
VERSION = 1
BATCH = 500
"""Rows of one transaction."""
MAX_LINE = 64 * 1024 * 1024
"""Bytes. A longer line is no row: a prompt has at most `limits.request_body`."""

INTERCEPTIONS = "aibridge_interceptions"
TOKENS = "aibridge_token_usages"
TOOLS = "aibridge_tool_usages"
DETAILS = (*DETAIL_TABLES, "aibridge_threads")
"""Tables whose rows belong to an interception."""
PLAN_LIMITS = "aibridge_plan_limits"
TABLES = (INTERCEPTIONS, *DETAILS, PLAN_LIMITS)
KEYS: Mapping[str, str] = MappingProxyType({"aibridge_threads": "key"})
"""Columns of primary keys that are not called `id`."""
ENDED = "ended_at is not null and (:since = '' or ended_at >= :since)"

Progress = Callable[[int], None]
"""Called with the number of rows so far."""


class ImportFailed(Exception):
    """A file cannot be imported any further."""


class Importer(Protocol):
    """A database that rows are imported to. Its methods raise DatabaseUnavailable."""

    def open(self) -> None:
        """Connect and bring the schema up to date."""

    def columns(self, table: str) -> Sequence[str]:
        """Return the columns of a table. Empty: there is no such table."""

    def insert(self, table: str, rows: Sequence[Row]) -> int:
        """Insert the rows that are not there, in one transaction. Returns how many those are.

        Any other exception than DatabaseUnavailable: the database refuses them.
        """

    def close(self) -> None: ...


# --- export -------------------------------------------------------------------------------------------------------


def export(queries: Queries, file: IO[bytes], since: datetime | None, progress: Progress) -> int:
    """Write interceptions that have ended, `since` then, with their details. Returns the number of rows.

    The rows are those of one moment. Raises DatabaseUnavailable and OSError.
    """
    digest = hashlib.sha256()
    rows: dict[str, int] = {}

    def write(line: Mapping[str, Any]) -> None:
        data = msgspec.json.encode(line) + b"\n"
        digest.update(data)
        file.write(data)

    with queries:
        parameters = {"since": "" if since is None else timestamp(since)}
        head = {"format": FORMAT, "version": VERSION, "schema": _schema(queries)}
        write(head | {"since": parameters["since"] or None})
        for table in TABLES:
            if not has_table(queries, table):
                continue
            rows[table] = 0
            for row in queries.stream(_selection(table, queries), parameters):
                write({"table": table, **row})
                rows[table] += 1
                progress(sum(rows.values()))
    file.write(msgspec.json.encode({"end": True, "rows": rows, "sha256": digest.hexdigest()}) + b"\n")
    file.flush()
    return sum(rows.values())


def _selection(table: str, queries: Queries) -> str:
    ended = _as_time(ENDED, queries)
    if table == INTERCEPTIONS:
        return f"select * from {table} where {ended}"  # noqa: S608 (names are ours)
    if table == PLAN_LIMITS:
        return f"select * from {table} where " + _as_time(":since = '' or observed_at >= :since", queries)  # noqa: S608
    return (
        f"select {table}.* from {table} join {INTERCEPTIONS} as interception"  # noqa: S608
        f" on interception.id = {table}.interception_id where {ended}"
    )


def _as_time(condition: str, queries: Queries) -> str:
    """Return a condition in which the parameter is a time. PostgreSQL does not compare times with text."""
    return condition.replace(
        ">= :since", ">= cast(nullif(:since, '') as timestamptz)" if queries.postgres else ">= :since"
    )


def _schema(queries: Queries) -> str:
    """Return the name of the last migration."""
    table = "_aibridge_migrations" if queries.postgres else "_sqlite_migrations"
    return max((row["name"] for row in queries.select(f"select name from {table}")), default="")  # noqa: S608


# --- import -------------------------------------------------------------------------------------------------------


def import_(database: Importer, file: IO[bytes], progress: Progress) -> tuple[int, int]:
    """Insert the rows of a file that the database does not have. Returns the numbers of rows read and inserted.

    Raises:
        ImportFailed: The file is torn, damaged or not an export. Rows before the fault were inserted.
        DatabaseUnavailable: The database cannot be reached. An import of the whole file completes it later.
    """
    reading = _Reading(file)
    inserted = 0
    fault: ImportFailed | None = None
    batch: list[Row] = []
    table = ""
    columns: dict[str, frozenset[str]] = {}

    def flush() -> None:
        nonlocal inserted
        if batch:
            inserted += _insert(database, table, batch)
            progress(reading.rows)
        batch.clear()

    try:
        for name, row in reading:
            if name not in columns:
                columns[name] = frozenset(database.columns(name))
            if unknown := row.keys() - columns[name]:
                raise ImportFailed(
                    f"line {reading.line}: {name} has no column {min(unknown)!r} here. The file is from a newer version"
                )
            if name != table or len(batch) >= BATCH:
                flush()
                table = name
            batch.append(row)
    except ImportFailed as e:
        fault = e
    flush()
    if fault is not None:
        raise ImportFailed(f"{fault}. Rows before it: {reading.rows} read, {inserted} inserted")
    return reading.rows, inserted


def _insert(database: Importer, table: str, rows: Sequence[Row]) -> int:
    """Insert rows that have the same columns together. An import may mix files of several versions."""
    inserted = 0
    by_columns: dict[tuple[str, ...], dict[Any, Row]] = {}
    for row in rows:
        by_columns.setdefault(tuple(row), {}).setdefault(row[KEYS.get(table, "id")], row)
    for group in by_columns.values():
        inserted += database.insert(table, list(group.values()))
    return inserted


class _Reading:
    """The rows of a file. Raises ImportFailed where it is torn or damaged."""

    def __init__(self, file: IO[bytes]) -> None:
        self.line = 0
        self.rows = 0
        self._file = file
        self._digest = hashlib.sha256()
        self._counts: dict[str, int] = {}

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        head = self._next()
        if head.get("format") != FORMAT:
            raise ImportFailed("line 1: not an export of aibridge")
        if head.get("version") != VERSION:
            raise ImportFailed(f"line 1: version {head.get('version')!r} of the format is not known, only {VERSION} is")
        while "end" not in (line := self._next()):
            yield self._row(line)
        if line.get("sha256") != self._before or line.get("rows", {}) != self._rows_expected(line):
            raise ImportFailed("the checksum or the counts of the last line are wrong, so the file was changed")

    def _rows_expected(self, line: Mapping[str, Any]) -> Mapping[str, int]:
        tables = line.get("rows")
        return (
            {table: self._counts.get(table, 0) for table in {*tables, *self._counts}}
            if isinstance(tables, dict)
            else {}
        )

    def _next(self) -> dict[str, Any]:
        self._before = self._digest.hexdigest()
        data = self._file.readline(MAX_LINE)
        self.line += 1
        if not data.endswith(b"\n"):
            raise ImportFailed(
                f"line {self.line}: the file ends here, before its last line"
                if len(data) < MAX_LINE
                else f"line {self.line}: longer than {MAX_LINE} bytes"
            )
        self._digest.update(data)
        try:
            line = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise ImportFailed(f"line {self.line}: not a JSON object")
        return line

    def _row(self, line: dict[str, Any]) -> tuple[str, Row]:
        table = line.pop("table", None)
        if table not in TABLES:
            raise ImportFailed(f"line {self.line}: an unknown table")
        key = KEYS.get(table, "id")
        if not isinstance(line.get(key), str) or not isinstance(line.get("interception_id", ""), str):
            raise ImportFailed(f"line {self.line}: a row of {table} without {key}")
        if not all(isinstance(value, str | int | float | None) for value in line.values()):
            raise ImportFailed(f"line {self.line}: a value that is neither a text nor a number")
        self._counts[table] = self._counts.get(table, 0) + 1
        self.rows += 1
        return table, line
