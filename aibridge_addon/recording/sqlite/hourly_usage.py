"""Keep the hourly usage in SQLite up to date. `recording.hourly_usage` describes how."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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

ADD = f"""
insert into {TABLE} ({", ".join(COLUMNS)}) values ({", ".join("?" * len(COLUMNS))})
on conflict ({", ".join(KEY)}) do update set
{
    ", ".join(
        f"{column} = max(-{MAX_AMOUNT}, min({column} + excluded.{column}, {MAX_AMOUNT}))"
        if column != "cost_usd"
        else f"{column} = {column} + excluded.{column}"
        for column in AMOUNTS
    )
}
"""  # noqa: S608 (names are ours)
REMOVE_EMPTY = f"""
delete from {TABLE} where ({", ".join(KEY)}) = ({", ".join("?" * len(KEY))})
and {" and ".join("abs(cost_usd) < 1e-9" if column == "cost_usd" else f"{column} = 0" for column in AMOUNTS)}
"""  # noqa: S608
"""Sums of floating-point numbers are not exact, so a cost that was subtracted again may leave a trace."""


@contextmanager
def counted(db: sqlite3.Connection, interception_ids: Iterable[str]) -> Iterator[None]:
    """Within a transaction that writes, add what the block changes in these interceptions and their token rows."""
    ids = {"ids": json.dumps(sorted(set(interception_ids)))}
    before = read(db.execute(COUNTED, ids))
    yield
    changed = changes(before, read(db.execute(COUNTED, ids)))
    db.executemany(ADD, [change.key + change.amounts for change in changed])
    db.executemany(REMOVE_EMPTY, [change.key for change in changed if change.only_less])
