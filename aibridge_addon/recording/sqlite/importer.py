"""Implements `recording.export.Importer` for SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from aibridge_addon.recording.export import INTERCEPTIONS, TOKENS, TOOLS, ImportFailed
from aibridge_addon.recording.rows import Row
from aibridge_addon.recording.sqlite.hourly_usage import counted
from aibridge_addon.recording.sqlite.store import WRONG, SqliteStore

COMPLETE_RESULT = """
update aibridge_tool_usages set result = :result, metadata = :metadata
where id = :id and result is null and :result is not null
"""
"""A result may have arrived after the export that had the call."""


class SqliteImporter(SqliteStore):
    def columns(self, table: str) -> Sequence[str]:
        with self._transaction() as db:
            return [name for (name,) in db.execute("select name from pragma_table_info(?)", [table])]

    def insert(self, table: str, rows: Sequence[Row]) -> int:
        names = tuple(rows[0])
        statement = (
            f"insert into {table} ({', '.join(names)})"  # noqa: S608 (names are ours)
            f" values ({', '.join(f':{name}' for name in names)}) on conflict do nothing"
        )
        key = "id" if table == INTERCEPTIONS else "interception_id"
        try:
            with self._transaction() as db:
                with counted(db, (row[key] for row in rows)) if table in (INTERCEPTIONS, TOKENS) else nullcontext():
                    inserted = db.executemany(statement, rows).rowcount
                if table == TOOLS and {"result", "metadata"} <= set(names):
                    db.executemany(COMPLETE_RESULT, rows)
                return inserted
        except (*WRONG, OverflowError) as e:
            raise ImportFailed(f"the database refuses rows of {table}: {e}") from e
