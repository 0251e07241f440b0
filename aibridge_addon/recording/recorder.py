"""The sink that writes to a database.

    thread of the record stream                            writer thread
    emit(records) ─▶ queue ─▶ up to MAX_TRANSACTION ─────▶ one transaction ─┐
    flush(done) ───▶ flushes ◀─── settled, refused, unavailable ◀───────────┘

The thread takes what there is: what comes while it writes is the next transaction, so that answers which end together
share a commit.

A database that does not answer is tried again for ever, while records queue up to `MAX_QUEUED`. A record that the
database refuses is dropped alone. Whatever is dropped is counted in `lost` and logged.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from aibridge_addon import records
from aibridge_addon.records import DatabaseUnavailable, Readiness, Record, Sink

logger = logging.getLogger(__name__)

STORED = frozenset(
    {
        records.InterceptionStarted,
        records.InterceptionEnded,
        records.TokenUsage,
        records.UserPrompt,
        records.ToolUsage,
        records.ModelThought,
        records.Continuation,
    }
)
"""Types of the records that have rows."""
MAX_QUEUED = 100_000
"""Records that are kept for a database that does not answer: about 100 MB of them."""
MAX_TRANSACTION = 2_000
"""Records of one transaction."""
RETRY_DELAYS = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to write; the last one repeats."""


class Store(Protocol):
    """A database. Every method is called on the writer thread only."""

    def open(self) -> None:
        """Connect and bring the schema up to date. Raises DatabaseUnavailable."""

    def write(self, records: Sequence[Record]) -> None:
        """Write all of these or none. Raises DatabaseUnavailable; anything else means that a record is refused."""

    def close(self) -> None: ...


class Recorder(Sink):
    durable = True

    def __init__(self, store: Store, *, required: bool = False, retry_delays: Sequence[float] = RETRY_DELAYS) -> None:
        """`required`: without its database, the bridge is not ready."""
        self.lost = 0
        """Records that were dropped."""
        self._store = store
        self._required = required
        self._retry_delays = retry_delays
        self._changed = threading.Condition()
        """Guards what is below; notified when there is something to do for the thread."""
        self._queue: deque[Record] = deque()
        self._flushes: deque[tuple[int, Callable[[bool], None]]] = deque()
        """How many records must be settled, and what to call then."""
        self._taken = 0
        """Records that were taken to be written."""
        self._settled = 0
        """Records that were written or refused."""
        self._available = True
        self._ended = False
        self._opened = threading.Event()
        self._open_error: Exception | None = None
        self._giving_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aibridge-recorder", daemon=True)

    def start(self) -> None:
        """Connect, and wait until that has succeeded. Called once, at start-up, where waiting is right.

        Raises:
            DatabaseUnavailable: the database cannot be opened.
        """
        self._thread.start()
        self._opened.wait()
        if self._open_error is not None:
            raise self._open_error

    def readiness(self) -> Readiness:
        return Readiness(
            ready=self._available or not self._required,
            details={"database": "available" if self._available else "unavailable"},
            waiting=self._depth,
            lost=self.lost,
        )

    @property
    def ended(self) -> bool:
        return self._ended and not self._thread.is_alive()

    @property
    def _depth(self) -> int:
        return self._taken - self._settled

    def emit(self, records: Sequence[Record]) -> None:
        stored = [record for record in records if type(record) in STORED]
        with self._changed:
            room = 0 if self._ended else max(0, MAX_QUEUED - self._depth)
            if len(stored) > room:
                reason = "the recorder has ended" if self._ended else f"{MAX_QUEUED} records wait for the database"
                self._drop(len(stored) - room, reason)
                del stored[room:]
            self._queue.extend(stored)
            self._taken += len(stored)
            self._changed.notify()

    def flush(self, done: Callable[[bool], None]) -> None:
        """Call `done` when everything taken so far is committed; with False where it is not, or cannot be now."""
        with self._changed:
            kept = self._available and not self._ended
            if kept and self._depth:
                self._flushes.append((self._taken, done))
                return
        done(kept)

    def close(self, timeout: float | None) -> None:
        """Write what is left and end. None: in the background; else blocks for at most `timeout` s and a little."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if timeout is None:
            return
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._thread.is_alive():
            self._giving_up.set()
            self._thread.join(1)
        with self._changed:
            if self._depth:
                self._drop(self._depth, "the database could not be written to before the end")
                self._taken = self._settled

    def _drop(self, count: int, reason: str) -> None:
        if self.lost == 0 or (self.lost + count) // 1000 > self.lost // 1000:
            logger.error("aibridge: %d records lost so far: %s", self.lost + count, reason)
        self.lost += count

    # --- on the writer thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._store.open()
        except Exception as e:  # noqa: BLE001 (handed to `start`, which raises it)
            self._open_error = e
            return
        finally:
            self._opened.set()
        while (batch := self._next()) and not self._giving_up.is_set():
            self._write(batch)
        self._release(self._taken, kept=False)
        self._store.close()

    def _next(self) -> list[Record]:
        """Wait for records; none: it ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended)
            return [self._queue.popleft() for _ in range(min(len(self._queue), MAX_TRANSACTION))]

    def _write(self, batch: Sequence[Record]) -> None:
        left = list(batch)
        refused: list[Record] = []
        attempt = 0
        while not self._giving_up.is_set():
            try:
                self._write_all(left, refused)
            except DatabaseUnavailable as e:
                delay = self._retry_delays[min(attempt, len(self._retry_delays) - 1)]
                if attempt == 0:
                    logger.error("aibridge: the database cannot be written to, trying again: %s", e)
                attempt += 1
                self._available = False
                self._release(self._taken, kept=False)
                self._giving_up.wait(delay)
            else:
                if attempt:
                    logger.warning("aibridge: the database can be written to again")
                with self._changed:
                    self._available = True
                    self._settled += len(batch)
                    if refused:
                        self._drop(len(refused), "the database refused them")
                self._release(self._settled, kept=not refused)
                return

    def _release(self, settled: int, *, kept: bool) -> None:
        """Answer the flushes that wait for no more than so many records."""
        with self._changed:
            answered = []
            while self._flushes and self._flushes[0][0] <= settled:
                answered.append(self._flushes.popleft()[1])
        for done in answered:
            done(kept)

    def _write_all(self, left: list[Record], refused: list[Record]) -> None:
        """Write these; one by one where the database refuses them together. Whatever is dealt with leaves `left`."""
        if not left:
            return
        try:
            self._store.write(left)
            left.clear()
        except DatabaseUnavailable:
            raise
        except Exception:
            logger.exception("aibridge: the database refuses a record")
            if len(left) == 1:
                refused.append(left.pop())
            while left:
                self._write_all(left[:1], refused)
                del left[0]
