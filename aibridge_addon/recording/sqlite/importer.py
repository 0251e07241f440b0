"""Implements `recording.export.Importer` for SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import nullcontext

from aibridge_addon.recording.export import (
    DETAILS,
    INTERCEPTIONS,
    KEEP,
    KEEP_NEWEST,
    THREADS,
    TOKENS,
    TOOLS,
    ImportFailed,
    Inserted,
)
from aibridge_addon.recording.rows import Row
from aibridge_addon.recording.sqlite.hourly_usage import counted
from aibridge_addon.recording.sqlite.store import WRONG, SqliteStore

COMPLETE_RESULT = """
update aibridge_tool_usages set result = :result, metadata = :metadata
where id = :id and result is null and :result is not null
"""
"""A result may have arrived after the export that had the call."""
THERE = f"select id from {INTERCEPTIONS} where id in (select value from json_each(?))"  # noqa: S608 (names are ours)


class SqliteImporter(SqliteStore):
    def columns(self, table: str) -> Sequence[str]:
        with self._transaction() as db:
            return [name for (name,) in db.execute("select name from pragma_table_info(?)", [table])]

    def insert(self, table: str, rows: Sequence[Row]) -> Inserted:
        try:
            with self._transaction() as db:
                wanted = _with_interception(db, rows) if table in DETAILS else rows
                inserted = _insert(db, table, wanted) if wanted else 0
                return Inserted(inserted, left_out=len(rows) - len(wanted))
        except (*WRONG, OverflowError) as e:
            raise ImportFailed(f"the database refuses a row of {table}: {e}") from e


def _with_interception(db: sqlite3.Connection, rows: Sequence[Row]) -> Sequence[Row]:
    ids = sorted({row["interception_id"] for row in rows})
    there = {id for (id,) in db.execute(THERE, [json.dumps(ids)])}
    return [row for row in rows if row["interception_id"] in there]


def _insert(db: sqlite3.Connection, table: str, rows: Sequence[Row]) -> int:
    names = tuple(rows[0])
    statement = (
        f"insert into {table} ({', '.join(names)})"  # noqa: S608 (names are ours)
        f" values ({', '.join(f':{name}' for name in names)}) {KEEP_NEWEST if table == THREADS else KEEP}"
    )
    key = "id" if table == INTERCEPTIONS else "interception_id"
    with counted(db, (row[key] for row in rows)) if table in (INTERCEPTIONS, TOKENS) else nullcontext():
        inserted = db.executemany(statement, rows).rowcount
    if table == TOOLS and {"result", "metadata"} <= set(names):
        db.executemany(COMPLETE_RESULT, rows)
    return inserted
