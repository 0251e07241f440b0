"""Keep the hourly usage in PostgreSQL up to date. `recording.hourly_usage` describes how.

Every process locks in one order: interceptions by id, and at the end of its transaction the rows of the table by key.
"""

from __future__ import annotations

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
from aibridge_addon.recording.postgres.connection import Connection

HOUR = "date_trunc('hour', {} at time zone 'UTC') at time zone 'UTC'"
COUNTED = select_counted(HOUR, "interception.id = any(%(ids)s::uuid[])").encode()
LOCK = "select id::text from aibridge_interceptions where id = any(%s::uuid[]) order by id for no key update"
"""The lock that an update needs, too. A transaction that waits for it sees the other one's token rows afterwards."""

TYPES = ("timestamptz", *["text"] * (len(KEY) - 1), *("numeric" if c == "cost_usd" else "bigint" for c in AMOUNTS))
_SUMS = ", ".join(
    f"sum({column})" if column == "cost_usd" else f"least(greatest(sum({column}), -{MAX_AMOUNT}), {MAX_AMOUNT})"
    for column in AMOUNTS
)
FILL = fill(HOUR, _SUMS)
"""Count all rows that are there."""

ADD = f"""
insert into {TABLE} as held ({", ".join(COLUMNS)})
select * from unnest({", ".join(f"%s::{kind}[]" for kind in TYPES)})
on conflict ({", ".join(KEY)}) do update set
{
    ", ".join(
        f"{column} = least(greatest(held.{column}::numeric + excluded.{column}, -{MAX_AMOUNT}), {MAX_AMOUNT})"
        if column != "cost_usd"
        else f"{column} = held.{column} + excluded.{column}"
        for column in AMOUNTS
    )
}
""".encode()  # noqa: S608 (names are ours)
REMOVE_EMPTY = f"""
delete from {TABLE} where ({", ".join(KEY)}) in (
    select * from unnest({", ".join(f"%s::{kind}[]" for kind in TYPES[: len(KEY)])})
) and {" and ".join(f"{column} = 0" for column in AMOUNTS)}
""".encode()  # noqa: S608


@contextmanager
def counted(db: Connection, interception_ids: Iterable[str]) -> Iterator[set[str]]:
    """Within a transaction, add what the block changes in these interceptions and their token rows.

    Yields the ids of those that exist. They are locked until the end of the transaction. The block has to fail if one
    of the others exists when it is inserted: another transaction wrote it meanwhile, and counted it.
    """
    ids = sorted(set(interception_ids))
    locked = db.execute(LOCK, [ids])
    before = db.execute(COUNTED, {"ids": ids})
    yield {id for (id,) in locked}
    changed = changes(read(before), read(db.execute(COUNTED, {"ids": ids})))
    if changed:
        db.execute(ADD, [list(column) for column in zip(*(c.key + c.amounts for c in changed), strict=True)])
    if less := [change.key for change in changed if change.only_less]:
        db.execute(REMOVE_EMPTY, [list(column) for column in zip(*less, strict=True)])
