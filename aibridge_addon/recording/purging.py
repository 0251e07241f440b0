"""Delete the rows or the texts of one actor, in the same short transactions as what has expired."""

# ruff: noqa: S608 (names of tables and columns are ours)

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aibridge_addon.recording.hourly_usage import COLUMNS, KEY, MAX_NAME
from aibridge_addon.recording.hourly_usage import TABLE as HOURLY_USAGE
from aibridge_addon.recording.pruning import (
    MAX_BATCH,
    MAX_CONTINUATIONS,
    OBSERVATIONS,
    Batch,
    Dated,
    Execute,
    Interceptions,
    Prunable,
    Selection,
    Step,
    Texts,
    with_texts,
)

PURGED = "[purged]"
"""Actor of sums whose actor was purged."""
FIND_SUMS = (
    f"select {', '.join(COLUMNS)} from {HOURLY_USAGE} where initiator_id = :actor"
    f" order by {', '.join(KEY)} limit :limit"
)
DELETE_SUMS = f"delete from {HOURLY_USAGE} where {' and '.join(f'{column} = :{column}' for column in KEY)}"


def of_actor(actor: str) -> Selection:
    return Selection("initiator_id = :actor", {"actor": actor}, is_whole=True)


def running(database: Prunable, actor: str) -> int:
    """Return the number of interceptions in progress."""
    sql = "select count(*) from aibridge_interceptions where initiator_id = :actor and ended_at is null"
    [(number,)] = database.read(sql, {"actor": actor}).fetchall()
    return int(number)


def texts_of(actor: str, now: datetime) -> Sequence[Step]:
    """Return the steps that delete an actor's texts."""
    return [Texts(with_texts(of_actor(actor)), now), continuations_of(actor)]


def continuations_of(actor: str) -> Step:
    """Return the step that deletes what an actor's later requests need, except for background responses.

    Those belong to an interception, and are deleted with it.
    """
    condition = "initiator_id = :actor and interception_id is null"
    return Dated("aibridge_continuations", "key", condition, {"actor": actor}, limit=MAX_CONTINUATIONS, is_whole=True)


def rows_of(actor: str, tables: frozenset[str]) -> Sequence[Step]:
    """Return the steps that delete an actor's rows.

    What is summed up by hour stays for the bill, without the actor.
    """
    steps: list[Step] = [
        Interceptions(of_actor(actor), kept_state=False),
        OrphanedThreads(),
        continuations_of(actor),
    ]
    steps += [
        Dated(table, "id", "initiator_id = :actor", {"actor": actor}, is_whole=True)
        for table in OBSERVATIONS
        if table in tables
    ]
    if HOURLY_USAGE in tables and actor != PURGED:
        steps.append(Sums(actor[:MAX_NAME]))
    return steps


@dataclass(frozen=True, slots=True)
class OrphanedThreads:
    """Keys of threads whose interception is gone."""

    limit: int = MAX_BATCH
    first: str = ""

    def delete(self, database: Prunable, execute: Execute, limit: int, after: Any) -> Batch:
        select = "select key from aibridge_threads where key > :after order by key limit :limit"
        keys = [key for (key,) in execute(select, {"after": after, "limit": limit}).fetchall()]
        orphaned = "not exists (select 1 from aibridge_interceptions where id = interception_id)"
        sql = f"delete from aibridge_threads where key in {database.listed_keys} and {orphaned}"
        deleted = execute(sql, {"keys": json.dumps(keys)}).rowcount
        return Batch(len(keys), Counter({"aibridge_threads": deleted}), after=keys[-1] if keys else after)

    def count(self, read: Execute) -> Batch:
        return Batch(0, Counter())  # they have an interception until that is deleted


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums by hour, which are added to those of the actor `PURGED`."""

    actor: str
    limit: int = MAX_BATCH
    first: None = None

    def delete(self, database: Prunable, execute: Execute, limit: int, after: Any) -> Batch:
        parameters = {"actor": self.actor, "limit": limit}
        found = [tuple(row) for row in execute(FIND_SUMS + database.lock, parameters).fetchall()]
        place = COLUMNS.index("initiator_id")
        database.add_hourly_usage([(*row[:place], PURGED, *row[place + 1 :]) for row in found])
        for row in found:
            execute(DELETE_SUMS, dict(zip(COLUMNS, row, strict=True)))
        return Batch(len(found), Counter({HOURLY_USAGE: len(found)}))

    def count(self, read: Execute) -> Batch:
        sql = "select count(*) from aibridge_hourly_usage where initiator_id = :actor"
        [(number,)] = read(sql, {"actor": self.actor}).fetchall()
        return Batch(0, Counter({HOURLY_USAGE: number}))
