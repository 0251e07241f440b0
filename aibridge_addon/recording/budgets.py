"""Keep budgets up to date with the database: what other processes have spent and reserved.

    event loop                                        thread
    records ─▶ BudgetSink ─▶ budgets.count                                what this process has spent
    after a reservation:   budgets.reserved ─▶ publish
    every REFRESH:         budgets.windows ──▶ read ─▶ budgets.total ─┐
                           budgets.update ◀───────────────────────────┘  what other processes have spent and reserved

A window's usage is read once as a whole. Then, only the rows of the last `SLACK` are read again, because a transaction
may be committed later than its rows were made. Rows that come even later, from a spool, are found every `RECOUNT`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from typing import Any, Protocol

from aibridge_addon.config.budgets import Period
from aibridge_addon.records import DatabaseUnavailable, Record, Sink, Spent

logger = logging.getLogger(__name__)

REFRESH = 0.5
"""Seconds between two looks into the database. Its queries come on top of the age of what is known."""
PROMPT = 0.05
"""Seconds. A new reservation waits this long for others before it is published."""
SLACK = timedelta(seconds=15)
"""Rows that were made this long ago are committed, unless they are in a spool."""
RECOUNT = timedelta(minutes=10)
"""A window is read anew after this time."""
SILENT = timedelta(seconds=15)
"""Reservations of a process that has not repeated them for this long do not count."""
REPEAT = timedelta(seconds=5)
"""A process repeats its reservations after this time."""
START_WAIT = 2.0
"""Seconds. Maximum time that the start waits for what was spent so far. At a reload, all traffic waits with it."""

Calendar = tuple[Period, tzinfo]
Span = tuple[datetime, datetime]
"""A window: its start, and its end, which is not part of it."""
Kept = Mapping[tuple[str, str], float]
"""Reserved amounts by budget and subject."""


class BudgetStore(Protocol):
    """What a database knows of budgets. All methods are called on one thread, and raise DatabaseUnavailable."""

    def spent(self, since: datetime, until: datetime | None, *, requests: bool, groups: bool) -> Iterable[Spent]:
        """Return the usage of a time, without that of this instance.

        Args:
            until: The end, which is not part of it. None: no end.
            requests: Also count requests.
            groups: Also return the groups that requests named.
        """

    def publish(self, reserved: Kept, now: datetime) -> None:
        """Replace this instance's reservations."""

    def reserved(self, since: datetime) -> Kept:
        """Return the sums of the reservations of other instances that were repeated at `since` or later."""

    def close(self) -> None: ...


class Accounts[Totals](Protocol):
    """Implemented by `interception.budgets.Budgets`."""

    @property
    def counts_requests(self) -> bool: ...
    def count(self, record: Record) -> None: ...
    def windows(self) -> Mapping[Calendar, Span]: ...
    def reserved(self) -> Kept: ...
    def total(self, spent: Mapping[Calendar, Iterable[Spent]]) -> Mapping[tuple[str, str], Totals]: ...
    def update(
        self, windows: Mapping[Calendar, Span], others: Mapping[tuple[str, str], Totals], reserved: Kept
    ) -> None: ...


class BudgetSink(Sink):
    """Counts the records of this process on the event loop."""

    def __init__(self, accounts: Accounts[Any]) -> None:
        self._accounts = accounts
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, before: Sink | None = None) -> None:
        self._loop = asyncio.get_running_loop()

    def emit(self, records: Sequence[Record]) -> None:
        # The stream reports a commit through the loop, too, so an answer is counted before its client sees its end.
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing is admitted any more
                self._loop.call_soon_threadsafe(self._count, records)

    def _count(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                self._accounts.count(record)
            except Exception:
                logger.exception("aibridge: a %s cannot be counted for budgets", type(record).__name__)


class BudgetSync[Totals]:
    """Started and closed on the event loop."""

    def __init__(
        self,
        accounts: Accounts[Totals],
        store: BudgetStore,
        *,
        groups: bool,
        now: Callable[[], datetime],
        start_wait: float = START_WAIT,
    ) -> None:
        """`groups`: budgets depend on groups, which requests may name by a header or a token."""
        self._accounts = accounts
        self._store = store
        self._groups = groups
        self._now = now
        self._start_wait = start_wait
        self._totals: dict[datetime, _Totals] = {}
        self._published: Kept = {}
        self._published_at: datetime | None = None
        self._failed = False
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._first: Future[_Found[Totals] | None] | None = None
        """What was spent before the start."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aibridge-budgets")
        self._ended = threading.Event()
        self._left: Future[None] | None = None
        """The last work of the thread."""

    def open(self) -> None:
        """Read what was spent so far. This blocks, for `start_wait` seconds at most, and is called once at the start.

        May be called on any thread, so the accounts, which emit records, are updated by `start`.
        """
        self._first = self._thread.submit(self._read, self._accounts.windows(), self._now())
        wait([self._first], self._start_wait)

    def start(self) -> None:
        """Keep the accounts up to date, on the running loop.

        If the database is slower than `open`, requests are admitted as if nothing was spent until it has answered.
        """
        first, self._first = self._first, None
        if first is not None and first.done():
            self._apply(first.result())
            first = None
        elif first is not None:
            logger.warning("aibridge: budgets count what was spent before the start as soon as the database answers")
        self._task = asyncio.get_running_loop().create_task(self._run(first))

    def want(self) -> None:
        """Publish a new reservation soon."""
        self._wanted.set()

    def close(self, timeout: float | None) -> None:
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
            self._task = None
        if not self._ended.is_set():
            self._ended.set()
            self._left = self._thread.submit(self._leave)
            self._thread.shutdown(wait=False)
        if self._left is not None:
            wait([self._left], timeout or 0)  # a query may take longer

    def _leave(self) -> None:
        try:
            if self._published:
                self._store.publish({}, self._now())
        except DatabaseUnavailable as e:
            logger.warning("aibridge: reservations for budgets cannot be withdrawn, they expire: %s", e)
        finally:
            self._store.close()

    async def _run(self, late: Future[_Found[Totals] | None] | None) -> None:
        loop = asyncio.get_running_loop()
        if late is not None:
            await self._finish_start(late)
        next_read = loop.time() + REFRESH
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_read):
                    await self._wanted.wait()
                    await asyncio.sleep(PROMPT)
            self._wanted.clear()
            try:
                reserved, now = self._accounts.reserved(), self._now()
                await loop.run_in_executor(self._thread, self._publish, reserved, now)
                if loop.time() >= next_read:
                    self._apply(await loop.run_in_executor(self._thread, self._read, self._accounts.windows(), now))
                    next_read = loop.time() + REFRESH
            except Exception:
                if self._ended.is_set():  # another thread has closed the executor meanwhile
                    return
                next_read = loop.time() + REFRESH
                logger.exception("aibridge: budgets cannot be brought up to date")

    async def _finish_start(self, late: Future[_Found[Totals] | None]) -> None:
        try:
            self._apply(await asyncio.wrap_future(late))
        except Exception:
            logger.exception("aibridge: budgets cannot be brought up to date")

    def _apply(self, found: _Found[Totals] | None) -> None:
        if found is not None:
            self._accounts.update(found.windows, found.others, found.reserved)

    # --- on the thread ----------------------------------------------------------------------------------------

    def _read(self, windows: Mapping[Calendar, Span], now: datetime) -> _Found[Totals] | None:
        """Return what other processes did. None: the database is away."""
        starts = {start for start, _ in windows.values()}
        self._totals = {start: totals for start, totals in self._totals.items() if start in starts}
        try:
            sums = {start: self._sums(start, now) for start in starts}
            reserved = self._store.reserved(now - SILENT)
        except DatabaseUnavailable as e:
            self._fail(e)
            return None
        if self._failed:
            logger.warning("aibridge: budgets can be read again")
        self._failed = False
        others = self._accounts.total({calendar: sums[start] for calendar, (start, _) in windows.items()})
        return _Found(windows, others, reserved)

    def _publish(self, reserved: Kept, now: datetime) -> None:
        is_due = self._published_at is None or not timedelta(0) <= now - self._published_at < REPEAT
        if reserved == self._published and not (reserved and is_due):
            return
        try:
            self._store.publish(reserved, now)
        except DatabaseUnavailable as e:
            self._fail(e)
        else:
            self._published, self._published_at = reserved, now

    def _fail(self, error: DatabaseUnavailable) -> None:
        if not self._failed:
            # An error that is logged during the start ends mitmproxy.
            logger.warning("aibridge: budgets cannot be shared, the last known state counts: %s", error)
        self._failed = True

    def _sums(self, start: datetime, now: datetime) -> list[Spent]:
        """Return what was spent since the start of a window."""
        options = {"requests": self._accounts.counts_requests, "groups": self._groups}
        totals = self._totals.get(start)
        settled = max(start, now - SLACK)
        # A clock that was set back makes new rows older than those that were counted.
        if totals is None or totals.until > settled or not timedelta(0) <= now - totals.counted_at < RECOUNT:
            totals = _Totals(settled, now)
            totals.add(self._store.spent(start, settled, **options))
        elif settled - totals.until >= SLACK:
            totals.add(self._store.spent(totals.until, settled, **options))
            totals.until = settled
        self._totals[start] = totals
        recent = _Totals(now, now, dict(totals.sums))
        recent.add(self._store.spent(totals.until, None, **options))
        return list(recent.sums.values())


@dataclass(frozen=True, slots=True)
class _Found[Totals]:
    windows: Mapping[Calendar, Span]
    others: Mapping[tuple[str, str], Totals]
    reserved: Kept


@dataclass(slots=True)
class _Totals:
    """What was spent from the start of a window until a moment."""

    until: datetime
    counted_at: datetime
    sums: dict[tuple[str, str | None, str, str], Spent] = field(default_factory=dict)

    def add(self, parts: Iterable[Spent]) -> None:
        for part in parts:
            key = (part.actor, part.groups, part.provider, part.model)
            known = self.sums.get(key)
            self.sums[key] = part if known is None else _sum(known, part)


def _sum(one: Spent, other: Spent) -> Spent:
    return replace(
        one,
        usd=one.usd + other.usd,
        tokens=one.tokens + other.tokens,
        requests=one.requests + other.requests,
        unpriced=one.unpriced + other.unpriced,
    )


GROUPS = "(interception.metadata ->> 'actor_groups')"
NO_GROUPS = "null"

# SQLite reads the tables of a cross join in their order, so that it begins with the newest token rows. A sum of floats
# does not fail for counts that a provider has made up, as one of integers does.
USAGE = """
select interception.initiator_id, {groups}, interception.provider_name, interception.model,
    coalesce(sum(usage.cost_usd), 0), coalesce(sum(
        1.0 * coalesce(usage.input_tokens, 0) + coalesce(usage.output_tokens, 0)
        + coalesce(usage.cache_read_input_tokens, 0) + coalesce(usage.cache_write_input_tokens, 0)
    ), 0), sum(case when usage.cost_usd is null then 1 else 0 end)
from aibridge_token_usages as usage cross join aibridge_interceptions as interception
where interception.id = usage.interception_id and usage.created_at >= {since}
and ({until} is null or usage.created_at < {until})
and (interception.instance_id is null or interception.instance_id <> {instance})
group by 1, 2, 3, 4
"""
REQUESTS = """
select initiator_id, {groups}, provider_name, model, count(*)
from aibridge_interceptions as interception
where ended_at >= {since} and ({until} is null or ended_at < {until}) and turns > 0
and (instance_id is null or instance_id <> {instance})
group by 1, 2, 3, 4
"""


def spent_of_usage(row: Sequence[object]) -> Spent:
    actor, groups, provider, model, usd, tokens, unpriced = row
    return Spent(
        str(actor),
        _maybe_text(groups),
        str(provider),
        str(model),
        usd=float(str(usd)),
        tokens=round(float(str(tokens))),
        unpriced=int(str(unpriced)),
    )


def spent_of_requests(row: Sequence[object]) -> Spent:
    actor, groups, provider, model, count = row
    return Spent(str(actor), _maybe_text(groups), str(provider), str(model), requests=int(str(count)))


def _maybe_text(value: object) -> str | None:
    return None if value is None else str(value)
