"""Work out the costs of stored token rows again, with the price list that is installed.

Rows are read in portions, and what has changed is written in short transactions, so the bridge can write in between.
What a provider itself stated is not touched. A run that ends early can be repeated: the rows that it wrote are right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from aibridge_addon.recording.conditions import matching, moment, within
from aibridge_addon.recording.pricing import COUNTS, price_of_row
from aibridge_addon.recording.queries import Queries
from aibridge_addon.recording.reports import Question

PORTION = 2_000
"""Rows that are read together."""
BATCH = 500
"""Rows that one transaction changes. The end of an answer may wait for it."""


@dataclass(frozen=True, slots=True)
class Change:
    """A token row with the values that it has to have."""

    id: str
    interception_id: str
    cost_usd: float | None
    cost_source: str | None
    price_list: str | None
    unpriced: str | None


class Prices(Protocol):
    """A database in which prices are changed, with a connection of its own. A context manager, for one thread."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def write(self, changes: Sequence[Change]) -> None:
        """Change rows and the hourly usage in one transaction. Raises DatabaseUnavailable."""


@dataclass(slots=True)
class Comparison:
    """The rows of one model, before and after."""

    token_usages: int = 0
    changed: int = 0
    """Rows whose cost differs, or that are priced now or no longer."""
    cost_usd: float = 0.0
    new_cost_usd: float = 0.0
    unpriced: int = 0
    new_unpriced: int = 0

    def count(self, old: float | None, new: float | None) -> None:
        self.token_usages += 1
        self.changed += old != new
        self.cost_usd += old or 0.0
        self.new_cost_usd += new or 0.0
        self.unpriced += old is None
        self.new_unpriced += new is None

    def add(self, other: Comparison) -> None:
        for name in Comparison.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Comparison.__slots__} | {
            "cost_usd": _amount(self.cost_usd, self.unpriced),
            "new_cost_usd": _amount(self.new_cost_usd, self.new_unpriced),
        }


def _amount(cost: float, unpriced: int) -> float | None:
    """Return a sum, or None if all of it may be unknown."""
    return None if cost == 0 and unpriced else round(cost, 12)


def reprice(open_queries: Callable[[], Queries], asked: Question, prices: Prices | None) -> dict[str, Comparison]:
    """Compare the costs of stored rows with those by the present price list, by model.

    `prices`: where to write the new costs. None: they are not written. Raises DatabaseUnavailable.
    """
    found: dict[str, Comparison] = {}
    pending: list[Change] = []
    for row in _rows(open_queries, asked):
        new = price_of_row(_decoded(row), row)
        cost = None if new.cost_usd is None else float(new.cost_usd)
        found.setdefault(row["model"] or "", Comparison()).count(row["cost_usd"], cost)
        change = Change(row["id"], row["interception_id"], cost, new.source, new.price_list, new.unpriced)
        if _values(change) != (row["cost_usd"], row["cost_source"], row["price_list"], row["unpriced"]):
            pending.append(change)
        if prices is not None and len(pending) >= BATCH:
            prices.write(pending)
            pending.clear()
        elif prices is None:
            pending.clear()
    if prices is not None and pending:
        prices.write(pending)
    return found


def _values(change: Change) -> tuple[Any, ...]:
    return change.cost_usd, change.cost_source, change.price_list, change.unpriced


def _rows(open_queries: Callable[[], Queries], asked: Question) -> Iterator[dict[str, Any]]:
    """Yield token rows in the order of their time. Each portion is one view of the database."""
    after: tuple[str, str] | None = None
    while True:
        with open_queries() as rows:
            portion = list(_portion(rows, asked, after))
        yield from portion
        if len(portion) < PORTION:
            return
        after = portion[-1]["created_at"], portion[-1]["id"]


def _portion(rows: Queries, asked: Question, after: tuple[str, str] | None) -> Iterator[dict[str, Any]]:
    parameters: dict[str, Any] = {}
    conditions = ["(t.cost_source is null or t.cost_source <> 'provider')"]
    conditions += within(rows, "t.created_at", asked.since, asked.until, parameters)
    if after is not None:
        parameters["at"], parameters["id"] = after
        at, id = moment(rows, "at"), "cast(:id as uuid)" if rows.postgres else ":id"
        conditions.append(f"(t.created_at, t.id) > ({at}, {id})")
        conditions.append(f"t.created_at >= {at}")  # SQLite uses an index for this one
    conditions += matching(rows, "i.initiator_id", asked.actors, parameters)
    conditions += matching(rows, "t.model", asked.models, parameters)
    return rows.select(
        f"""
        select t.id, t.interception_id, t.model, {", ".join(f"t.{name}" for name in COUNTS)}, t.metadata, t.created_at,
            t.cost_usd, t.cost_source, t.price_list, t.unpriced, i.provider, i.upstream_host
        from aibridge_token_usages as t cross join aibridge_interceptions as i
        where i.id = t.interception_id and {" and ".join(conditions)}
        order by t.created_at, t.id limit {PORTION}
        """,  # noqa: S608 (names are ours, values are parameters)
        parameters,
    )


def _decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as `price_of_row` takes it."""
    try:
        metadata = json.loads(row["metadata"] or "{}")
    except ValueError:
        metadata = {}
    counts = {name: row[name] or 0 for name in COUNTS}
    return {**row, **counts, "model": row["model"] or "", "metadata": metadata if isinstance(metadata, dict) else {}}
