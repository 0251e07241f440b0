"""Write the record as JSON lines, and read it again: for a backup, or to move it to another database.

    {"format": "aibridge-export", "version": 1, "schema": "006_hourly_usage", "since": null}
    {"table": "aibridge_interceptions", "id": "…", "initiator_id": "…", …}
    …
    {"end": true, "rows": {"aibridge_interceptions": 1, …}, "sha256": "…"}

A line has the values that `recording.queries` returns. The digest is that of all lines before the last one. Parents
come before their details, so that an import can stop after any line. A file may contain several exports, one after the
other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import IO, Any, NamedTuple, Protocol

import msgspec

from aibridge_addon.recording.queries import Queries, has_table
from aibridge_addon.recording.rows import DETAIL_TABLES, Row, timestamp
from aibridge_addon.wire.printable import printable_json

FORMAT = "aibridge-export"
VERSION = 1
BATCH = 500
"""Maximum number of rows in one transaction."""
BATCH_BYTES = 8 * 2**20
"""Bytes of lines from which on a transaction gets no more."""
MAX_HEAD = 4096
"""Bytes. A file with a longer first line is not an export."""
MAX_LINE = 256 * 2**20
"""Bytes. Rows are shorter: a text has at most `limits.request_body`, and JSON takes up to six bytes for one of it."""
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")
"""The first bytes of files of gzip, zstd, bzip2 and xz."""

INTERCEPTIONS = "aibridge_interceptions"
TOKENS = "aibridge_token_usages"
TOOLS = "aibridge_tool_usages"
THREADS = "aibridge_threads"
DETAILS = (*DETAIL_TABLES, THREADS)
"""Tables whose rows belong to an interception."""
PLAN_LIMITS = "aibridge_plan_limits"
TABLES = (INTERCEPTIONS, *DETAILS, PLAN_LIMITS)
KEYS: Mapping[str, str] = MappingProxyType({THREADS: "key"})
"""Columns of primary keys that are not called `id`."""
KEEP = "on conflict do nothing"
KEEP_NEWEST = (
    "on conflict (key) do update set interception_id = excluded.interception_id, created_at = excluded.created_at"
    " where excluded.created_at > aibridge_threads.created_at"
)
"""Keys of threads repeat. As in `store`, the newest interception with the same key counts."""
ENDED = "ended_at is not null and (:since = '' or ended_at >= :since)"

Progress = Callable[[int], None]
"""Called with the number of rows so far."""


class ImportFailed(Exception):
    """A file cannot be imported any further."""


class Inserted(NamedTuple):
    """What became of rows. All others were there before."""

    inserted: int
    left_out: int = 0
    """Details of interceptions that are not there, because retention deleted them during the import."""


class Imported(NamedTuple):
    read: int
    inserted: int
    left_out: int


class Importer(Protocol):
    """A database that rows are imported to. Its methods raise DatabaseUnavailable."""

    def open(self) -> None:
        """Connect and bring the schema up to date."""

    def columns(self, table: str) -> Sequence[str]:
        """Return the columns of a table. Empty: there is no such table."""

    def insert(self, table: str, rows: Sequence[Row]) -> Inserted:
        """Insert the rows that are not there, in one transaction. Details without their interception are left out.

        Raises ImportFailed if the database refuses a row. Then none of them is inserted.
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
        data = _safe(msgspec.json.encode(line)) + b"\n"
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


def _safe(line: bytes) -> bytes:
    """Return a line that controls no terminal, to which it may go. `sys.stdout` is the usual file."""
    if line.isascii() and b"\x7f" not in line:
        return line
    return printable_json(line.decode()).encode()


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


def import_(database: Importer, file: IO[bytes], progress: Progress) -> Imported:
    """Insert the rows of a file that the database does not have. Memory does not depend on the size of the file.

    Raises:
        ImportFailed: The file is torn, damaged or not an export. Rows before the fault were inserted.
        DatabaseUnavailable: The database cannot be reached. An import of the whole file completes it later.
    """
    reading = _Reading(file)
    batch = _Batch(database)
    fault: ImportFailed | None = None
    try:
        for line in reading:
            if not batch.has_room(line):
                batch.insert()
                progress(reading.rows)
            batch.add(line)
    except ImportFailed as e:
        fault = e
    try:
        batch.insert()
    except ImportFailed as e:
        fault = e  # of a line before that of the other one
    progress(reading.rows)
    if fault is not None:
        raise ImportFailed(f"{fault}. Rows before it: {reading.rows} read, {batch.inserted} inserted")
    return Imported(reading.rows, batch.inserted, batch.left_out)


class _Line(NamedTuple):
    number: int
    table: str
    row: Row
    size: int


class _Batch:
    """Rows of one table that wait to be inserted together."""

    def __init__(self, database: Importer) -> None:
        self.inserted = 0
        self.left_out = 0
        self._database = database
        self._lines: list[_Line] = []
        self._size = 0
        self._columns: dict[str, frozenset[str]] = {}

    def has_room(self, line: _Line) -> bool:
        return not self._lines or (
            line.table == self._lines[0].table and len(self._lines) < BATCH and self._size + line.size <= BATCH_BYTES
        )

    def add(self, line: _Line) -> None:
        """Raises ImportFailed if the row has a column that the database does not have."""
        if line.table not in self._columns:
            self._columns[line.table] = frozenset(self._database.columns(line.table))
        if unknown := line.row.keys() - self._columns[line.table]:
            lacks = f"{line.table} has no column {min(unknown)[:80]!r} here"
            raise ImportFailed(f"line {line.number}: {lacks}. The file is from a newer version")
        self._lines.append(line)
        self._size += line.size

    def insert(self) -> None:
        """Insert rows that have the same columns together. An import may mix files of several versions."""
        lines, self._lines, self._size = self._lines, [], 0
        by_columns: dict[tuple[str, ...], dict[Any, _Line]] = {}
        for line in lines:
            by_columns.setdefault(tuple(line.row), {}).setdefault(line.row[KEYS.get(line.table, "id")], line)
        for group in by_columns.values():
            self._insert(list(group.values()))

    def _insert(self, lines: Sequence[_Line]) -> None:
        try:
            inserted = self._database.insert(lines[0].table, [line.row for line in lines])
        except ImportFailed as e:
            if len(lines) == 1:
                raise ImportFailed(f"line {lines[0].number}: {e}") from e
            for line in lines:  # up to the one that the database refuses
                self._insert([line])
            return
        self.inserted += inserted.inserted
        self.left_out += inserted.left_out


class _Reading:
    """The rows of a file. Raises ImportFailed where it is torn or damaged."""

    def __init__(self, file: IO[bytes]) -> None:
        self.rows = 0
        self._file = file
        self._number = 0
        """Of the line that was read last."""
        self._digest = hashlib.sha256()
        self._counts: dict[str, int] = {}

    def __iter__(self) -> Iterator[_Line]:
        data = self._read(MAX_HEAD)
        yield from self._export(data)
        while data := self._read(MAX_HEAD):
            yield from self._export(data)

    def _export(self, head: bytes) -> Iterator[_Line]:
        self._digest, self._counts = hashlib.sha256(head), {}
        self._check_head(head)
        while True:
            data = self._read(MAX_LINE)
            line = self._decoded(data)
            if "end" in line:
                return self._check_end(line)
            self._digest.update(data)
            yield self._row(line, len(data))

    def _check_head(self, data: bytes) -> None:
        if self._number == 1 and data.startswith(COMPRESSED):
            raise ImportFailed("line 1: the file is compressed. Decompress it, and import the result")
        try:
            head = self._decoded(data)
        except ImportFailed:
            if not data:
                raise
            head = {}
        if head.get("format") != FORMAT:
            raise ImportFailed(f"line {self._number}: not an export of aibridge")
        if head.get("version") != VERSION:
            raise ImportFailed(
                f"line {self._number}: version {head.get('version')!r} of the format is not known, only {VERSION} is"
            )

    def _check_end(self, line: Mapping[str, Any]) -> None:
        tables = line.get("rows")
        counted = isinstance(tables, dict) and tables == dict.fromkeys(tables, 0) | self._counts
        if line.get("sha256") != self._digest.hexdigest() or not counted:
            raise ImportFailed(
                f"line {self._number}: the checksum or the counts of an export are wrong, so it was changed"
            )

    def _read(self, limit: int) -> bytes:
        self._number += 1
        return self._file.readline(limit)

    def _decoded(self, data: bytes) -> dict[str, Any]:
        if not data.endswith(b"\n"):
            raise ImportFailed(
                f"line {self._number}: the file ends here, before its last line"
                if len(data) < MAX_LINE
                else f"line {self._number}: longer than {MAX_LINE} bytes"
            )
        try:
            line = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise ImportFailed(f"line {self._number}: not a JSON object")
        return line

    def _row(self, line: dict[str, Any], size: int) -> _Line:
        table = line.pop("table", None)
        if table not in TABLES:
            raise ImportFailed(self._without_table(table, line))
        needed = {KEYS.get(table, "id"), *(["interception_id"] if table in DETAILS else [])}
        if missing := sorted(name for name in needed if not isinstance(line.get(name), str)):
            raise ImportFailed(f"line {self._number}: a row of {table} without {missing[0]}")
        if not all(isinstance(value, str | int | float | None) for value in line.values()):
            raise ImportFailed(f"line {self._number}: a value that is neither a text nor a number")
        self._counts[table] = self._counts.get(table, 0) + 1
        self.rows += 1
        return _Line(self._number, table, line, size)

    def _without_table(self, table: object, line: Mapping[str, Any]) -> str:
        """Return why a line is no row."""
        if line.get("format") == FORMAT:
            return f"line {self._number}: another export begins here, before the last line of the one before it"
        if isinstance(table, str):
            return f"line {self._number}: an unknown table, {table[:80]!r}. The file may be from a newer version"
        return f"line {self._number}: a row without a table"
