"""Read the rows that the addon wrote, from outside its process, or keep it from writing any."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from aibridge_addon.recording.rows import PRICE_TERMS

Table = Literal[
    "aibridge_interceptions",
    "aibridge_token_usages",
    "aibridge_user_prompts",
    "aibridge_tool_usages",
    "aibridge_answers",
    "aibridge_model_thoughts",
    "aibridge_plan_limits",
]
Row = dict[str, Any]

JSON_COLUMNS = frozenset({"metadata", "input"})
LOCKED_FOR_AT_MOST = 5.0


def read_table(database: Path, table: Table) -> list[Row]:
    """Return a table's rows in the order of their insertion, none as long as it does not exist."""
    if not database.exists():
        return []
    known = query(database, "SELECT 1 FROM sqlite_master WHERE name = ?", table)
    return query(database, f"SELECT * FROM {table} ORDER BY rowid") if known else []


def query(database: Path, sql: str, *parameters: object) -> list[Row]:
    uri = f"{database.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=LOCKED_FOR_AT_MOST)) as connection:
        connection.row_factory = sqlite3.Row
        return [_decoded(dict(row)) for row in connection.execute(sql, parameters)]


def _decoded(row: Row) -> Row:
    for column in JSON_COLUMNS & row.keys():
        if isinstance(row[column], str):
            row[column] = json.loads(row[column])
    return row


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Lock the database, so that no other connection can write to it."""
    with closing(sqlite3.connect(database, autocommit=True)) as connection:
        connection.execute("begin exclusive")
        yield
        connection.execute("rollback")


def said_of_usage(row: Row) -> Any:
    """What the provider said of usage: the metadata of a token row without the terms of its price."""
    return {name: value for name, value in row["metadata"].items() if name != PRICE_TERMS}
