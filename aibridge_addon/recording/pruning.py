"""Delete rows in short transactions, so that others can write in between.

    run(database, steps, pace)
        for each step: transaction ─▶ pause ─▶ transaction ─▶ … until a transaction finds less than it may delete
        then: give free space back, a portion at a time

A transaction deletes at most `MAX_BATCH` interceptions, each with all that belongs to it. It deletes fewer if it takes
longer than `TARGET`. The pause behind it lasts as long as the transaction, so others get at least half of the time.

What was deleted stays deleted if a run ends early. The next run goes on.
"""

# ruff: noqa: S608 (names of tables and columns are ours)

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, Self

from aibridge_addon.recording.expiry import BACKGROUND_UNFINISHED, UNFINISHED, Expiry
from aibridge_addon.recording.rows import DETAIL_TABLES
from aibridge_addon.records import DatabaseUnavailable

MAX_BATCH = 1_000
"""Maximum number of interceptions that one transaction deletes."""
MAX_CONTINUATIONS = 100
"""The same for continuations, because one may have 2 MiB."""
FIRST_BATCH = 100
TARGET = 0.1
"""Seconds that a transaction should take. The end of an answer may wait for it."""
MIN_PAUSE = 0.01
"""Seconds."""
BUSY_PAUSE = 1.0
"""Seconds to wait after a lock was not free."""
MAX_BUSY = 10
"""Number of such waits in a row after which a run ends."""
MAX_BACKLOG = 100_000
"""Interceptions beyond that are not counted, because counting takes time."""

DELETED = "[deleted]"
TEXTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "aibridge_user_prompts": ("prompt is not null", "prompt = null"),
        "aibridge_tool_usages": (
            f"input is not null or result is not null or invocation_error <> '{DELETED}'",
            "input = null, result = null,"
            f" invocation_error = case when invocation_error is not null then '{DELETED}' end",
        ),
        "aibridge_answers": ("content is not null", "content = null"),
        "aibridge_model_thoughts": ("content is not null", "content = null"),
        "aibridge_interceptions": ("error_message is not null", "error_message = null"),
    }
)
"""By table, the rows that have a text, and how it is deleted. That an invocation failed stays known.

An error's message may quote the request.
"""
OBSERVATIONS: Mapping[str, str] = MappingProxyType({"aibridge_plan_limits": "observed_at"})
"""Tables about actors, and the column with the age of a row."""
RESERVATIONS = "aibridge_budget_reservations"
"""One row for each instance."""

Parameters = Mapping[str, object]
Counts = Counter[str]
"""Numbers of rows, by table."""


class Busy(DatabaseUnavailable):
    """Another transaction has the locks that are needed."""


class Result(Protocol):
    """What a statement did: a cursor of the database's driver."""

    @property
    def rowcount(self) -> int: ...

    def fetchall(self) -> Sequence[tuple[Any, ...]]: ...


Execute = Callable[[str, Parameters], Result]
"""Execute a statement. In the SQL, `:name` is a parameter."""


class Prunable(Protocol):
    """A database in which rows are deleted, with a connection of its own. A context manager, for one thread.

    All methods raise DatabaseUnavailable.
    """

    listed_ids: str
    """SQL of a list: the ids in the parameter `ids`, which is JSON."""
    listed_keys: str
    """The same for the texts in the parameter `keys`."""
    lock: str
    """Clause at the end of a `select` that locks its rows."""
    lock_free: str
    """The same, without the rows that others have locked."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def take_turn(self) -> bool:
        """Return False if another process deletes rows now. Otherwise, no other one does until the exit."""

    def transaction(self) -> AbstractContextManager[Execute]:
        """Begin a transaction, and commit it at the end. Raises Busy if a lock is not free within about a second."""

    def read(self, sql: str, parameters: Parameters) -> Result:
        """Execute a `select` on its own, without keeping others from writing."""

    def counted(self, interception_ids: Sequence[str]) -> AbstractContextManager[object]:
        """Within a transaction, keep the hourly usage up to date with what the block changes in interceptions."""

    def add_hourly_usage(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Within a transaction, add amounts to rows of the hourly usage, with the columns `hourly_usage.COLUMNS`."""

    def tables(self) -> frozenset[str]:
        """Return the names of the tables that are there."""

    def give_back(self) -> int:
        """Give a portion of the free space back to the system. Returns the number of free pages that are left."""

    def settle(self) -> None:
        """Bring the files to their new size."""

    @property
    def shrinks(self) -> bool:
        """Whether free space of this database can be used or given back without `vacuum`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction did."""

    found: int
    """Number of rows that it looked for. Fewer than allowed: there are no more."""
    rows: Counts
    texts: Counts = field(default_factory=Counter)
    after: Any = None
    """Where the next one goes on."""


class Step(Protocol):
    """A kind of row to delete."""

    @property
    def limit(self) -> int:
        """Maximum number of rows that one transaction looks for."""

    @property
    def first(self) -> Any:
        """`after` of the first transaction."""

    def delete(self, database: Prunable, execute: Execute, limit: int, after: Any) -> Batch:
        """Delete up to `limit` rows within a transaction."""

    def count(self, read: Execute) -> Batch:
        """Return what there is to delete."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Interceptions that have ended, with a condition."""

    condition: str
    parameters: Parameters
    is_whole: bool = False
    """Whether rows that others have locked are waited for. Otherwise they are left for a later run."""

    def sql(self, columns: str) -> str:
        return f"select {columns} from aibridge_interceptions where {self.condition} and ended_at is not null"

    def find(self, database: Prunable, execute: Execute, limit: int, after: datetime) -> Batch:
        """Return the ids, as `after` of a batch with the time of the last one."""
        lock = database.lock if self.is_whole else database.lock_free
        order = f"order by started_at limit :limit{lock}"
        sql = f"{self.sql('id, started_at')} and started_at >= :after {order}"
        found = execute(sql, {**self.parameters, "limit": limit, "after": after}).fetchall()
        last = found[-1][1] if found else after
        return Batch(len(found), Counter(), after=(json.dumps([str(id) for id, _ in found]), last))


def begun_before(before: datetime, since: datetime | None = None) -> Selection:
    if since is None:
        return Selection("started_at < :before", {"before": before})
    return Selection("started_at < :before and started_at >= :since", {"before": before, "since": since})


def with_texts(selection: Selection) -> Selection:
    """Leave out interceptions whose texts were deleted."""
    return replace(selection, condition=f"{selection.condition} and content_deleted_at is null")


BEGINNING = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Interceptions:
    """Interceptions, with everything that belongs to them."""

    selection: Selection
    kept_state: bool = True
    """Leave continuations to their own expiry, because the client's session may go on."""
    limit: int = MAX_BATCH
    first: datetime = BEGINNING

    @property
    def details(self) -> Sequence[str]:
        """Tables whose rows are deleted with an interception."""
        return DETAIL_TABLES if self.kept_state else (*DETAIL_TABLES, "aibridge_continuations")

    def delete(self, database: Prunable, execute: Execute, limit: int, after: Any) -> Batch:
        found = self.selection.find(database, execute, limit, after)
        ids, last = found.after
        rows: Counts = Counter()
        for table in self.details:
            sql = f"delete from {table} where interception_id in {database.listed_ids}"
            rows[table] = execute(sql, {"ids": ids}).rowcount
        sql = f"delete from aibridge_interceptions where id in {database.listed_ids}"
        rows["aibridge_interceptions"] = execute(sql, {"ids": ids}).rowcount
        return Batch(found.found, rows, after=last)

    def count(self, read: Execute) -> Batch:
        rows: Counts = Counter()
        for table in self.details:
            sql = f"select count(*) from {table} where interception_id in ({self.selection.sql('id')})"
            rows[table] = _number(read(sql, self.selection.parameters))
        rows["aibridge_interceptions"] = _number(read(self.selection.sql("count(*)"), self.selection.parameters))
        return Batch(0, rows)


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of interceptions, whose rows and numbers stay."""

    selection: Selection
    now: datetime
    limit: int = MAX_BATCH
    first: datetime = BEGINNING

    def delete(self, database: Prunable, execute: Execute, limit: int, after: Any) -> Batch:
        found = self.selection.find(database, execute, limit, after)
        ids, last = found.after
        texts: Counts = Counter()
        for table, (has_text, deletion) in TEXTS.items():
            key = _key(table)
            sql = f"update {table} set {deletion} where {key} in {database.listed_ids} and ({has_text})"
            texts[table] = execute(sql, {"ids": ids}).rowcount
        mark = f"update aibridge_interceptions set content_deleted_at = :now where id in {database.listed_ids}"
        execute(mark, {"now": self.now, "ids": ids})
        return Batch(found.found, Counter(), texts, after=last)

    def count(self, read: Execute) -> Batch:
        texts: Counts = Counter()
        for table, (has_text, _) in TEXTS.items():
            sql = f"select count(*) from {table} where {_key(table)} in ({self.selection.sql('id')}) and ({has_text})"
            texts[table] = _number(read(sql, self.selection.parameters))
        return Batch(0, Counter(), texts)


@dataclass(frozen=True, slots=True)
class Continuations:
    """Continuations, claims and aliases that have expired. Background responses among them have failed."""

    now: datetime
    limit: int = MAX_CONTINUATIONS
    first: None = None

    def delete(self, database: Prunable, execute: Execute, limit: int, after: Any) -> Batch:
        select = (
            "select key, interception_id from aibridge_continuations where expires_at <= :now"
            f" order by expires_at limit :limit{database.lock_free}"
        )
        found = execute(select, {"now": self.now, "limit": limit}).fetchall()
        if unfinished := [str(id) for _, id in found if id is not None]:
            with database.counted(unfinished):
                execute(
                    "update aibridge_interceptions set ended_at = :now, status = 'failed', error_type = :error_type,"
                    f" error_message = :error_message where id in {database.listed_ids} and ended_at is null",
                    {
                        "now": self.now,
                        "error_type": BACKGROUND_UNFINISHED,
                        "error_message": UNFINISHED,
                        "ids": json.dumps(unfinished),
                    },
                )
        delete = f"delete from aibridge_continuations where key in {database.listed_keys}"
        deleted = execute(delete, {"keys": json.dumps([key for key, _ in found])}).rowcount
        return Batch(len(found), Counter({"aibridge_continuations": deleted}))

    def count(self, read: Execute) -> Batch:
        sql = "select count(*) from aibridge_continuations where expires_at <= :now"
        return Batch(0, Counter({"aibridge_continuations": _number(read(sql, {"now": self.now}))}))


@dataclass(frozen=True, slots=True)
class Dated:
    """Rows of a table of its own that are older than a time, or fulfil another condition."""

    table: str
    key: str
    condition: str
    parameters: Parameters
    limit: int = MAX_BATCH
    is_whole: bool = False
    """As in `Selection`."""
    first: None = None

    def delete(self, database: Prunable, execute: Execute, limit: int, after: Any) -> Batch:
        lock = database.lock if self.is_whole else database.lock_free
        select = f"select {self.key} from {self.table} where {self.condition} limit :limit{lock}"
        sql = f"delete from {self.table} where {self.key} in ({select})"
        deleted = execute(sql, {**self.parameters, "limit": limit}).rowcount
        return Batch(deleted, Counter({self.table: deleted}))

    def count(self, read: Execute) -> Batch:
        sql = f"select count(*) from {self.table} where {self.condition}"
        return Batch(0, Counter({self.table: _number(read(sql, self.parameters))}))


def expired(expiry: Expiry, tables: frozenset[str]) -> Sequence[Step]:
    """Return the steps that delete what has expired."""
    steps: list[Step] = [
        Continuations(expiry.now),
        Dated("aibridge_threads", "key", "created_at <= :before", {"before": expiry.threads}),
    ]
    if expiry.rows is not None:
        steps.append(Interceptions(begun_before(expiry.rows)))
        steps += [
            Dated(table, "id", f"{column} < :before", {"before": expiry.rows})
            for table, column in OBSERVATIONS.items()
            if table in tables
        ]
    if (texts := _texts(expiry)) is not None:
        steps.append(texts)
    if expiry.instances is not None:
        if RESERVATIONS in tables:
            steps.append(Dated(RESERVATIONS, "instance_id", "updated_at < :before", {"before": expiry.instances}))
        open_one = "select 1 from aibridge_interceptions where instance_id = aibridge_instances.id and ended_at is null"
        condition = f"heartbeat_at < :before and not exists ({open_one})"
        steps.append(Dated("aibridge_instances", "id", condition, {"before": expiry.instances}))
    return steps


def backlog(database: Prunable, expiry: Expiry) -> int:
    """Return the number of interceptions of which rows or texts have expired, at most twice `MAX_BACKLOG`."""
    selections = [] if expiry.rows is None else [begun_before(expiry.rows)]
    if (texts := _texts(expiry)) is not None:
        selections.append(texts.selection)
    return sum(
        _number(
            database.read(
                f"select count(*) from ({selection.sql('1')} limit :most) as expired",
                {**selection.parameters, "most": MAX_BACKLOG},
            )
        )
        for selection in selections
    )


def _texts(expiry: Expiry) -> Texts | None:
    """Return the step for texts that are deleted before their rows. None: there are none."""
    if expiry.content is None or (expiry.rows is not None and expiry.rows >= expiry.content):
        return None
    return Texts(with_texts(begun_before(expiry.content, since=expiry.rows)), expiry.now)


def _key(table: str) -> str:
    return "id" if table == "aibridge_interceptions" else "interception_id"


def _number(result: Result) -> int:
    [(number,)] = result.fetchall()
    return int(number)


# --- a run --------------------------------------------------------------------------------------------------------


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _nothing(_: Deleted) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a run may take, and how it waits."""

    budget: float | None = None
    """Seconds. None: no limit."""
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], bool] = _sleep
    """Wait that many seconds. True: the run has to end."""
    report: Callable[[Deleted], None] = _nothing
    """Called after each transaction with the sum of what was deleted so far."""


@dataclass(slots=True)
class Deleted:
    """What a run deleted, or what it would delete."""

    rows: Counts = field(default_factory=Counter)
    texts: Counts = field(default_factory=Counter)
    complete: bool = True
    """Whether nothing is left to delete."""

    def add(self, batch: Batch) -> None:
        self.rows += batch.rows
        self.texts += batch.texts


def count(database: Prunable, steps: Iterable[Step]) -> Deleted:
    """Return what a run would delete."""
    deleted = Deleted()
    for step in steps:
        deleted.add(step.count(database.read))
    return deleted


def run(database: Prunable, steps: Iterable[Step], pace: Pace = Pace()) -> Deleted:
    """Run steps one after the other, then give free space back.

    Raises:
        Busy: A lock was not free for too long.
        DatabaseUnavailable: The database cannot be reached any more.
    """
    deleted = Deleted()
    transactions = _Transactions(pace, None if pace.budget is None else pace.clock() + pace.budget)
    for step in steps:
        size, after, more = min(FIRST_BATCH, step.limit), step.first, True
        while more and deleted.complete:
            batch = transactions.attempt(partial(_delete, database, step, size, after))
            if batch is None:
                deleted.complete = False
                break
            deleted.add(batch)
            pace.report(deleted)
            more, after = batch.found == size, batch.after
            size = _next_size(size, transactions.took, step.limit)
    while deleted.complete and (left := transactions.attempt(database.give_back)) != 0:
        deleted.complete = left is not None
    database.settle()
    return deleted


def _delete(database: Prunable, step: Step, size: int, after: Any) -> Batch:
    with database.transaction() as execute:
        return step.delete(database, execute, size, after)


@dataclass(slots=True)
class _Transactions:
    """Transactions with pauses between them."""

    pace: Pace
    ending: float | None
    took: float = 0.0
    """Seconds that the last one took."""
    pause: float = 0.0

    def attempt[Outcome](self, transaction: Callable[[], Outcome]) -> Outcome | None:
        """Pause, and run a transaction, again if locks are not free. None: the run has to end before."""
        for failures in range(MAX_BUSY):
            if self.pace.wait(self.pause) or (self.ending is not None and self.pace.clock() >= self.ending):
                return None
            began = self.pace.clock()
            try:
                outcome = transaction()
            except Busy:
                self.pause = BUSY_PAUSE
                if failures + 1 == MAX_BUSY:
                    raise
            else:
                self.took = self.pace.clock() - began
                self.pause = max(MIN_PAUSE, self.took)
                return outcome
        raise AssertionError


def _next_size(size: int, seconds: float, limit: int) -> int:
    """Return the size of the next batch, which should take about `TARGET` seconds."""
    if seconds > TARGET:
        return max(1, size // 2)
    return min(limit, size * 2) if seconds < TARGET / 2 else size
