"""Implements `recording.export.Importer` for PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg

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
from aibridge_addon.recording.postgres.connection import Connection
from aibridge_addon.recording.postgres.hourly_usage import counted
from aibridge_addon.recording.postgres.store import PostgresStore
from aibridge_addon.recording.postgres.text import text_form
from aibridge_addon.recording.rows import Row

COLUMNS = """
select column_name from information_schema.columns where table_schema = current_schema() and table_name = %s
"""
COMPLETE_RESULT = b"""
update aibridge_tool_usages set result = %(result)s, metadata = %(metadata)s
where id = %(id)s and result is null and %(result)s::text is not null
"""
"""A result may have arrived after the export that had the call."""
NAME_CACHED = b"""
update aibridge_token_usages as usage set metadata = usage.metadata || case
    when interception.route !~ '/messages(/|$)' and (
        interception.route ~ '/(chat/completions|responses)(/|$)'
        or interception.provider in ('openai', 'azure', 'copilot')
    ) then jsonb_build_object('prompt_cached', coalesce(usage.cache_read_input_tokens, 0))
    else jsonb_build_object(
        'cache_read_input', coalesce(usage.cache_read_input_tokens, 0),
        'cache_creation_input', coalesce(usage.cache_write_input_tokens, 0)
    )
end
from aibridge_interceptions as interception
where usage.id = any(%s::uuid[]) and interception.id = usage.interception_id
and jsonb_typeof(usage.metadata) = 'object'
and not usage.metadata ?| array['prompt_cached', 'cache_read_input', 'cache_creation_input']
"""
"""Add what Coder's dashboard sums up, as `store` does. Rows of SQLite lack it. The route shows the dialect."""
HOLD = b"select id::text from aibridge_interceptions where id = any(%s::uuid[]) order by id for key share"
"""The lock that the insertion of details needs, too. A deletion of the interception waits for it."""


class PostgresImporter(PostgresStore):
    def columns(self, table: str) -> Sequence[str]:
        return self._repeat(lambda connection: [name for (name,) in connection.execute(COLUMNS, [table])])

    def insert(self, table: str, rows: Sequence[Row]) -> Inserted:
        values = [{name: text_form(name, value) for name, value in row.items()} for row in rows]
        try:
            return self._repeat(lambda connection: _insert(connection, table, values))
        except psycopg.Error as e:
            raise ImportFailed(f"the database refuses a row of {table}: {' '.join(str(e).split())}") from e


def _insert(connection: Connection, table: str, rows: Sequence[Row]) -> Inserted:
    names = tuple(rows[0])
    insert = (
        f"insert into {table} ({', '.join(names)})"  # noqa: S608 (names are ours)
        f" values ({', '.join(f'%({name})s' for name in names)})"
    )
    with connection.transaction(), connection.cursor() as cursor:
        if table == INTERCEPTIONS:
            with counted(connection, [row["id"] for row in rows]) as known:
                # One that another transaction inserts meanwhile is a conflict. The transaction is repeated.
                cursor.executemany(insert.encode(), [row for row in rows if row["id"] not in known])
                return Inserted(max(0, cursor.rowcount))
        insert += f" {KEEP_NEWEST if table == THREADS else KEEP}"
        wanted = rows
        if table in DETAILS:
            ids = [row["interception_id"] for row in rows]
            with counted(connection, ids) if table == TOKENS else _held(connection, ids) as known:
                wanted = [row for row in rows if row["interception_id"] in known]
                cursor.executemany(insert.encode(), wanted)
        else:
            cursor.executemany(insert.encode(), rows)
        inserted = Inserted(max(0, cursor.rowcount), left_out=len(rows) - len(wanted))
        if table == TOKENS:
            connection.execute(NAME_CACHED, [[row["id"] for row in wanted]])
        if table == TOOLS and {"result", "metadata"} <= set(names):
            cursor.executemany(COMPLETE_RESULT, wanted)
        return inserted


@contextmanager
def _held(connection: Connection, interception_ids: Sequence[str | None]) -> Iterator[set[str]]:
    """Yield the ids of the interceptions that exist. They are kept until the end of the transaction."""
    yield {id for (id,) in connection.execute(HOLD, [sorted({*filter(None, interception_ids)})])}
