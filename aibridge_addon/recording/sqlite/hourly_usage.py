"""Keep the hourly usage in SQLite up to date. `recording.hourly_usage` describes how."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec

from aibridge_addon.recording.hourly_usage import (
    AMOUNTS,
    COLUMNS,
    KEY,
    MAX_AMOUNT,
    TABLE,
    changes,
    fill,
    read,
    select_counted,
)

HOUR = "substr({}, 1, 13) || ':00:00.000000+00:00'"
COUNTED = select_counted(HOUR, "interception.id in (select value from json_each(:ids))")

_SUMS = ", ".join(
    f"total({column})" if column == "cost_usd" else f"cast(total({column}) as integer)" for column in AMOUNTS
)
FILL = fill(HOUR, _SUMS)
"""Count all rows that are there. `sum` would fail where a total exceeds 64 bits."""

_ADDED = f"""on conflict ({", ".join(KEY)}) do update set
{
    ", ".join(
        f"{column} = max(-{MAX_AMOUNT}, min({column} + excluded.{column}, {MAX_AMOUNT}))"
        if column != "cost_usd"
        else f"{column} = {column} + excluded.{column}"
        for column in AMOUNTS
    )
}
"""
ADD = f"""
insert into {TABLE} ({", ".join(COLUMNS)}) values ({", ".join("?" * len(COLUMNS))}) {_ADDED}
"""  # noqa: S608 (names are ours)
ADD_ALL = f"""
with counted (source, id, {", ".join(COLUMNS)}) as ({COUNTED})
insert into {TABLE} ({", ".join(COLUMNS)}) select {", ".join(COLUMNS)} from counted where true {_ADDED}
"""  # noqa: S608
"""Add all that counts now. Row by row, because `sum` fails where a total exceeds 64 bits.

`where true`: otherwise, SQLite takes `on conflict` for the condition of a join.
"""
REMOVE_EMPTY = f"""
delete from {TABLE} where ({", ".join(KEY)}) = ({", ".join("?" * len(KEY))})
and {" and ".join("abs(cost_usd) < 1e-9" if column == "cost_usd" else f"{column} = 0" for column in AMOUNTS)}
"""  # noqa: S608
"""Sums of floating-point numbers are not exact, so a cost that was subtracted again may leave a trace."""


@contextmanager
def counted(db: sqlite3.Connection, interception_ids: Iterable[str]) -> Iterator[None]:
    """Within a transaction that writes, add what the block changes in these interceptions and their token rows."""
    changing = sorted(set(interception_ids))
    if not changing:
        yield
        return
    ids = {"ids": msgspec.json.encode(changing).decode()}
    before = read(db.execute(COUNTED, ids))
    yield
    if not before:
        # The usual case. Each row that Python fetches releases the GIL several times, which costs time.
        db.execute(ADD_ALL, ids)
        return
    changed = changes(before, read(db.execute(COUNTED, ids)))
    db.executemany(ADD, [change.key + change.amounts for change in changed])
    if less := [change.key for change in changed if change.only_less]:
        db.executemany(REMOVE_EMPTY, less)
