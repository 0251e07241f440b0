"""Check tokens of the bridge: at most one query every few seconds for each token, and none on the event loop.

    known ─▶ the verdict of the last few seconds, without waiting
    check ─▶ one query at a time, for all tokens that wait

A token that was revoked is refused after `FRESH` seconds. While the database is away, tokens that it has confirmed
within `GRACE` count, and all others are refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from aibridge_addon.credentials.tokens import UNAVAILABLE, UNKNOWN, Grant, Presented, Verdict
from aibridge_addon.recording.reader import answer_of
from aibridge_addon.records import DatabaseUnavailable, utc_now

logger = logging.getLogger(__name__)

FRESH = 3.0
"""Seconds after which the database is asked again, about known and about unknown tokens."""
GRACE = 900.0
"""Seconds that a token counts without confirmation while the database is away."""
REST = 2.0
"""Seconds. After a failed query, no request waits for the database for this long."""
TIMEOUT = 4.0
"""Seconds. Maximum time of a query. It exceeds the time limits of the databases' own connections."""
USE_NOTED = timedelta(seconds=60)
"""`last_used_at` is updated at most once in this time."""
MAX_KNOWN = 10_000
"""Known tokens in memory. Those that were not used for the longest time are dropped."""
MAX_UNKNOWN = 10_000
"""Unknown tokens in memory. They have a memory of their own, so that a flood of them displaces no known one."""
MAX_WAITING = 1_000
"""Tokens that wait for a query. Others are refused as if the database were away."""


class TokenStore(Protocol):
    """Tokens in a database. Blocks the calling thread. Every method raises DatabaseUnavailable."""

    def find(self, digests: Sequence[str]) -> Mapping[str, Grant]:
        """Return the tokens with these digests that the database has."""

    def note_use(self, ids: Sequence[str], now: datetime) -> None:
        """Set `last_used_at` where it is older than `USE_NOTED`."""

    def add(self, digest: str, row: Mapping[str, Any], key: bytes) -> None:
        """Insert a token. `key` becomes the database's key if it has none."""

    def revoke(self, id: str, now: datetime) -> datetime | None:
        """Revoke a token, and return when that was first done. None: there is no such token."""

    def close(self) -> None: ...


@dataclass(slots=True)
class _Known:
    grant: Grant
    confirmed: float
    """When the database was last asked about it."""
    noted: float | None = None
    """When its use was last noted."""


class TokenCache:
    """Used on one event loop."""

    def __init__(
        self,
        store: TokenStore,
        *,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now` is the time of day, by which tokens expire. `clock` is a monotonic clock in seconds."""
        self._store = store
        self._now = now
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        """When the database was asked about tokens that it does not have."""
        self._waiting: dict[str, asyncio.Future[Verdict]] = {}
        self._used: set[str] = set()
        """Ids of tokens whose use has to be noted."""
        self._away_until: float | None = None
        """Set while the database is away: when it is asked again."""
        self._asking: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="aibridge-tokens")

    def known(self, token: Presented) -> Verdict | None:
        """Return the verdict about a token if no query is necessary for it."""
        if not token.well_formed:
            return UNKNOWN
        now = self._clock()
        entry = self._known.get(token.digest)
        if entry is not None and now - entry.confirmed < FRESH:
            self._known.move_to_end(token.digest)
            return self._verdict(entry)
        asked = self._unknown.get(token.digest)
        if asked is not None and now - asked < FRESH:
            return UNKNOWN
        if self._away_until is not None and now < self._away_until:
            return self._unconfirmed(token.digest)
        return None

    async def check(self, token: Presented) -> Verdict:
        """Return the verdict about a token. Never raises."""
        verdict = self.known(token)
        if verdict is not None:
            return verdict
        answer = self._waiting.get(token.digest)
        if answer is None:
            if len(self._waiting) >= MAX_WAITING:
                return self._unconfirmed(token.digest)
            answer = self._waiting[token.digest] = asyncio.get_running_loop().create_future()
            self._ask()
        await asyncio.wait({answer})  # unlike `await answer`, it does not cancel the answer for others
        return answer.result()

    def close(self) -> None:
        """Close the connection. The thread ends with this object, because a request in progress may still ask."""
        self._store.close()

    def _verdict(self, entry: _Known) -> Verdict:
        refusal = entry.grant.refusal(self._now())
        if refusal is not None:
            return refusal
        now = self._clock()
        if entry.noted is None or now - entry.noted >= USE_NOTED.total_seconds():
            entry.noted = now
            self._used.add(entry.grant.id)
            self._ask()
        return entry.grant

    def _unconfirmed(self, digest: str) -> Verdict:
        """Return the verdict about a token that the database cannot be asked about."""
        entry = self._known.get(digest)
        if entry is None or self._clock() - entry.confirmed >= GRACE:
            return UNAVAILABLE
        return entry.grant.refusal(self._now()) or entry.grant

    def _ask(self) -> None:
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_in_turns())
            self._asking.add_done_callback(self._asked)

    def _asked(self, _: asyncio.Task[None]) -> None:
        self._asking = None
        if self._waiting or self._used:
            self._ask()

    async def _ask_in_turns(self) -> None:
        while self._waiting or self._used:
            waiting, used = self._waiting, tuple(self._used)
            self._used.clear()
            if waiting:
                verdicts = await self._verdicts(tuple(waiting))
                self._waiting = {digest: answer for digest, answer in self._waiting.items() if digest not in verdicts}
                for digest, verdict in verdicts.items():
                    if not waiting[digest].done():
                        waiting[digest].set_result(verdict)
            if used:
                await self._note_use(used)

    async def _verdicts(self, digests: Sequence[str]) -> Mapping[str, Verdict]:
        """Ask the database, and return what follows for each token."""
        now = self._clock()
        try:
            found = await self._on_thread(lambda: self._store.find(digests))
        except Exception as e:  # noqa: BLE001 (each request that waits needs a verdict)
            if self._away_until is None:
                logger.warning("aibridge: tokens cannot be checked, known ones count for %g more seconds: %s", GRACE, e)
            self._away_until = self._clock() + REST
            return {digest: self._unconfirmed(digest) for digest in digests}
        if self._away_until is not None:
            logger.info("aibridge: tokens can be checked again")
            self._away_until = None
        return {digest: self._confirmed(digest, found.get(digest), now) for digest in digests}

    def _confirmed(self, digest: str, grant: Grant | None, now: float) -> Verdict:
        before = self._known.pop(digest, None)
        self._unknown.pop(digest, None)
        if grant is None:
            self._unknown[digest] = now
            if len(self._unknown) > MAX_UNKNOWN:
                self._unknown.popitem(last=False)
            return UNKNOWN
        entry = self._known[digest] = _Known(grant, now, None if before is None else before.noted)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return self._verdict(entry)

    async def _note_use(self, ids: Sequence[str]) -> None:
        try:
            await self._on_thread(lambda: self._store.note_use(ids, self._now()))
        except DatabaseUnavailable as e:
            logger.debug("aibridge: the last use of tokens cannot be noted: %s", e)
        except Exception:
            logger.exception("aibridge: the last use of tokens cannot be noted")

    async def _on_thread[Result](self, query: Callable[[], Result]) -> Result:
        return await answer_of(query, self._threads, TIMEOUT)
