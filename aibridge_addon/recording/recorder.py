"""The sink that writes records to a database.

    thread of the record stream                            writer thread
    emit(records) ─▶ queue ─▶ up to MAX_TRANSACTION ─────▶ one transaction ─┐
    flush(done) ───▶ flushes ◀─── settled, refused, unavailable ◀───────────┘

The writer thread takes all waiting records. Records that arrive while it writes form the next transaction, so answers
that end at the same time share a commit.

If the database does not answer, the thread retries without end, while up to `MAX_QUEUED` records wait. If the database
refuses a record, only that record is dropped. Dropped records are counted in `lost` and logged.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from aibridge_addon.records import STORED, DatabaseUnavailable, Readiness, Record, Sink

logger = logging.getLogger(__name__)

MAX_QUEUED = 100_000
"""Maximum number of records that wait for the database, about 100 MB. Later ones are dropped."""
MAX_TRANSACTION = 2_000
"""Maximum number of records in one transaction."""
RETRY_DELAYS = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to write. The last value repeats."""


class Store(Protocol):
    """A database. All methods are called on the writer thread."""

    def open(self) -> None:
        """Connect and bring the schema up to date. Raises DatabaseUnavailable."""

    def write(self, records: Sequence[Record]) -> None:
        """Write all of these records or none. Raises DatabaseUnavailable. Any other exception: a record is refused."""

    def close(self) -> None: ...


class Recorder(Sink):
    durable = True

    def __init__(self, store: Store, *, required: bool = False, retry_delays: Sequence[float] = RETRY_DELAYS) -> None:
        """`required`: the bridge is not ready while the database is unavailable."""
        self.lost = 0
        """Number of dropped records."""
        self._lost_before = 0
        """`lost` when a flush was last answered."""
        self._store = store
        self._required = required
        self._retry_delays = retry_delays
        self._changed = threading.Condition()
        """Protects the attributes below. It is notified when there is work for the thread."""
        self._queue: deque[Record] = deque()
        self._flushes: deque[tuple[int, Callable[[bool], None]]] = deque()
        """Pairs of a number of settled records and the callback for when it is reached."""
        self._taken = 0
        """Number of records that were accepted for writing."""
        self._settled = 0
        """Number of records that were written or refused."""
        self._available = True
        self._ended = False
        self._opened = threading.Event()
        self._open_error: Exception | None = None
        self._giving_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aibridge-recorder", daemon=True)

    def start(self) -> None:
        """Open the database. This blocks, and is called once at the start.

        Raises:
            DatabaseUnavailable: The database cannot be opened.
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
        """Call `done(True)` when all records received so far are committed, `done(False)` if that is not possible.

        A record that was lost since the last answered flush makes this one `False`, too.
        """
        with self._changed:
            kept = self._available and not self._ended
            if kept and self._depth:
                self._flushes.append((self._taken, done))
                return
            kept = kept and self._nothing_lost_since()
        done(kept)

    def _nothing_lost_since(self) -> bool:
        """Return whether no record was lost since the last call. `_changed` is held."""
        before, self._lost_before = self._lost_before, self.lost
        return self.lost == before

    def close(self, timeout: float | None) -> None:
        """Write the waiting records and end. Blocks for about `timeout` seconds at most. None: in the background."""
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
        except Exception as e:  # noqa: BLE001 (`start` raises it)
            self._open_error = e
            return
        finally:
            self._opened.set()
        while (batch := self._next()) and not self._giving_up.is_set():
            self._write(batch)
        self._release(self._taken, kept=False)
        self._store.close()

    def _next(self) -> list[Record]:
        """Wait for records and return them. An empty list: the recorder ends."""
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
                self._release(self._settled, kept=True)
                return

    def _release(self, settled: int, *, kept: bool) -> None:
        """Call the callbacks of the flushes that wait for at most `settled` records."""
        with self._changed:
            answered = []
            while self._flushes and self._flushes[0][0] <= settled:
                answered.append(self._flushes.popleft()[1])
            if answered:
                kept = self._nothing_lost_since() and kept
        for done in answered:
            done(kept)

    def _write_all(self, left: list[Record], refused: list[Record]) -> None:
        """Write these records, one by one if the database refuses them together. Removes settled ones from `left`."""
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
