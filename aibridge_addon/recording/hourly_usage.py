"""Hourly usage: what reports sum up, kept up to date by every transaction that changes what is counted.

A token row counts in the hour in which it was created, under its own model. An interception counts in the hour in which
it ended, under the model of its last answer. If it has none, under the model that was asked for.

A transaction reads what its interceptions count before it changes them and afterwards, and adds the difference. So it
does not matter what it changes: rows that are written again change nothing, an end that replaces another moves the
count. Rows that are deleted stay counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from aibridge_addon import records
from aibridge_addon.records import Record

TABLE = "aibridge_hourly_usage"
KEY = ("hour", "initiator_id", "provider_name", "model", "client", "billing")
AMOUNTS = (
    *("interceptions", "failed", "input_tokens", "output_tokens", "cache_read_input_tokens"),
    *("cache_write_input_tokens", "cost_usd", "unpriced"),
)
COLUMNS = KEY + AMOUNTS
COST = AMOUNTS.index("cost_usd")
MAX_NAME = 256
"""Characters of a name in the key. A longer one is cut, because an index has a limit for what it can contain."""
MAX_AMOUNT = 2**63 - 1
"""Amounts are 64-bit integers. Counts come from providers, and a wrong one must not keep a row from being written."""

Key = tuple[Any, ...]
Amounts = tuple[int | float | Decimal, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """What one row adds to the hourly usage."""

    key: Key
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Change:
    key: Key
    amounts: Amounts
    only_less: bool
    """Nothing was added, so the row may be empty now."""


def changed_interceptions(batch: Iterable[Record]) -> set[str]:
    """Return the ids of the interceptions that count differently after these records."""
    return {
        record.interception_id for record in batch if isinstance(record, records.InterceptionEnded | records.TokenUsage)
    }


def select_counted(hour: str, condition: str) -> str:
    """Return the query for what each row counts: its table, its id, its key and its amounts.

    `hour`: an expression with `{}` in place of a time. `condition`: selects interceptions by `interception.id`.
    """
    names = f"substr(initiator_id, 1, {MAX_NAME}), provider_name, substr({{}}, 1, {MAX_NAME})," + (
        f" substr(client, 1, {MAX_NAME}), coalesce(billing, '')"
    )
    counts = ", ".join(f"coalesce({column}, 0)" for column in AMOUNTS[2:COST])
    return f"""
select 'usage', usage.id, {hour.format("usage.created_at")}, {names.format("coalesce(usage.model, '')")},
    0, 0, {counts}, coalesce(cost_usd, 0), case when cost_usd is null then 1 else 0 end
from aibridge_interceptions as interception join aibridge_token_usages as usage on interception_id = interception.id
where usage.created_at is not null and {condition}
union all
select 'interception', id, {hour.format("ended_at")}, {names.format(MODEL)},
    1, case when status = 'failed' then 1 else 0 end, 0, 0, 0, 0, 0, 0
from aibridge_interceptions as interception
where ended_at is not null and {condition}
"""  # noqa: S608 (names are ours)


def fill(hour: str, sums: str) -> str:
    """Return the statement that counts all rows that are there. `sums`: an expression for each of `AMOUNTS`.

    Rows of an hour are inserted together, as they are later, so that PostgreSQL finds them in few pages.
    """
    return f"""
with counted (source, id, {", ".join(COLUMNS)}) as ({select_counted(hour, "true")})
insert into {TABLE} ({", ".join(COLUMNS)})
select {", ".join(KEY)}, {sums} from counted group by {", ".join(KEY)} order by {", ".join(KEY)}
"""  # noqa: S608 (names are ours)


MODEL = """coalesce((
    select usage.model from aibridge_token_usages as usage
    where interception_id = interception.id and kind = 'answer' and usage.model <> ''
    order by turn desc, created_at desc, usage.id desc limit 1
), interception.model)"""


def read(rows: Iterable[tuple[Any, ...]]) -> dict[tuple[str, Any], Counted]:
    """Return the rows of `select_counted` by table and id."""
    end = 2 + len(KEY)
    return {(row[0], row[1]): Counted(tuple(row[2:end]), tuple(row[end:])) for row in rows}


def changes(before: Mapping[tuple[str, Any], Counted], after: Mapping[tuple[str, Any], Counted]) -> list[Change]:
    """Return what has to be added to each row of the table, in the order in which every process locks them."""
    sums: dict[Key, list[Any]] = {}
    only_less: defaultdict[Key, bool] = defaultdict(lambda: True)
    for sign, counted in _differing(before, after):
        only_less[counted.key] &= sign < 0
        total = sums.setdefault(counted.key, [0] * len(AMOUNTS))
        for place, amount in enumerate(counted.amounts):
            total[place] += sign * amount
    return [Change(key, _bounded(sums[key]), only_less[key]) for key in sorted(sums)]


def _differing(
    before: Mapping[tuple[str, Any], Counted], after: Mapping[tuple[str, Any], Counted]
) -> Iterator[tuple[int, Counted]]:
    for row in {**before, **after}:
        was, now = before.get(row), after.get(row)
        if was != now:
            if was is not None:
                yield -1, was
            if now is not None:
                yield 1, now


def _bounded(amounts: list[Any]) -> Amounts:
    return tuple(
        amount if place == COST else max(-MAX_AMOUNT, min(amount, MAX_AMOUNT)) for place, amount in enumerate(amounts)
    )
