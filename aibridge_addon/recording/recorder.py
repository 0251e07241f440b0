"""Hand records to a database without ever making the event loop wait for it.

    event loop                                             writer thread
    emit(record) ─▶ pending ─┐
                             ├─▶ one batch at a time ─────▶ one transaction ─┐
    committed() ──▶ waiting ─┘   ▲                                           │
                                 └──────── the next one, or nobody ◀─────────┘

The thread has one batch at most; what comes meanwhile is the next one, so that answers which end together share a
commit. Records that nobody waits for stay for up to `LINGER`, so that a short interception is one batch. Under load,
where several answers waited for the last commit, the next one waits `GROUP_WINDOW` for more: a commit costs the event
loop two switches of threads, whatever it holds.

A database that does not answer is tried again for ever, while records queue up to `MAX_QUEUED`. A record that the
database refuses is dropped alone. Whatever is dropped is counted in `lost` and logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aibridge_addon import records
from aibridge_addon.records import DatabaseUnavailable, Record

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
LINGER = 0.1
"""Seconds that records may wait for company."""
GROUP_WINDOW = 0.005
"""Seconds that a commit waits for further answers to end, under load."""
CROWD = 2
"""Answers that waited for one commit, from which on it counts as load."""
MAX_QUEUED = 100_000
"""Records that are kept for a database that does not answer: about 100 MB of them."""
MAX_TRANSACTION = 2_000
"""Records of one transaction, at which no further batch is added."""
RETRY_DELAYS = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to write; the last one repeats."""
COMMIT_TIMEOUT = 5.0
"""Seconds that an answer's end waits for its rows."""


class Store(Protocol):
    """A database. Every method is called on the writer thread only."""

    def open(self) -> None:
        """Connect and bring the schema up to date. Raises Unavailable."""

    def write(self, records: Sequence[Record]) -> None:
        """Write all of these or none. Raises Unavailable; anything else means that a record is refused."""

    def close(self) -> None: ...


@dataclass(slots=True)
class _Waiting:
    """Answers that wait for the same commit."""

    futures: list[asyncio.Future[bool]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    def release(self, written: bool) -> None:
        if self.timer is not None:
            self.timer.cancel()
        for future in self.futures:
            if not future.done():
                future.set_result(written)


@dataclass(slots=True)
class _Batch:
    records: list[Record]
    waiting: _Waiting


class Recorder:
    """The sink that writes to the database; used on one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        retry_delays: Sequence[float] = RETRY_DELAYS,
        commit_timeout: float = COMMIT_TIMEOUT,
    ) -> None:
        self.lost = 0
        """Records that were dropped."""
        self._store = store
        self._retry_delays = retry_delays
        self._commit_timeout = commit_timeout
        self._pending: list[Record] = []
        self._waiting = _Waiting()
        self._busy = False
        """The thread has a batch."""
        self._ended = False
        self._crowd = 0
        """Answers that waited for the last commit."""
        self._taken = 0
        """Records that were taken to be written; counted on the loop only."""
        self._settled = 0
        """Records that were written or refused; counted on the thread only."""
        self._timer: asyncio.TimerHandle | None = None
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._available = True
        self._opened = threading.Event()
        self._open_error: Exception | None = None
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="aibridge-recorder", daemon=True)

    # --- on the event loop ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and wait until that has succeeded. Called once, at start-up, where waiting is right.

        Raises:
            DatabaseUnavailable: the database cannot be opened.
        """
        self._thread.start()
        self._opened.wait()
        if self._open_error is not None:
            raise self._open_error

    @property
    def available(self) -> bool:
        """Whether the database took the last records that it was given."""
        return self._available

    @property
    def depth(self) -> int:
        """Records that are not committed yet."""
        return self._taken - self._settled

    def emit(self, record: Record) -> None:
        """Take a record. Never blocks, never raises."""
        if type(record) not in STORED:
            return
        if self.depth >= MAX_QUEUED:
            self._drop(1, f"{MAX_QUEUED} records are waiting for the database")
            return
        self._taken += 1
        self._pending.append(record)
        if self._timer is None and not self._busy:
            self._hand_over_in(LINGER)

    async def committed(self) -> bool:
        """Wait until everything emitted so far is in the database; False if that takes too long or is hopeless now."""
        if not self._available or self._ended:
            return False
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        waiting = self._waiting
        waiting.futures.append(done)
        if waiting.timer is None:
            waiting.timer = loop.call_later(self._commit_timeout, waiting.release, False)
            if not self._busy:
                self._hand_over_in(GROUP_WINDOW if self._crowd >= CROWD else 0)
        return await done

    def _hand_over_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._hand_over)

    def _hand_over(self) -> None:
        """Give the thread what there is, in batches of a bounded size."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy or not (self._pending or self._waiting.futures):
            return
        batch, self._pending = self._pending[:MAX_TRANSACTION], self._pending[MAX_TRANSACTION:]
        waiting = _Waiting()
        if not self._pending:  # who waits, waits for all that came before
            waiting, self._waiting = self._waiting, waiting
        self._busy = True
        self._batches.put(_Batch(batch, waiting))

    def _written(self, batch: _Batch, refused: int) -> None:
        """Back on the loop: the thread has dealt with a batch."""
        if refused:
            self._drop(refused, "the database refused them")
        self._crowd = len(batch.waiting.futures)
        batch.waiting.release(not refused)
        self._busy = False
        if self._pending or self._waiting.futures:
            crowded = self._crowd >= CROWD and not len(self._pending) >= MAX_TRANSACTION
            self._hand_over_in(GROUP_WINDOW if crowded else 0)

    def _unavailable(self, batch: _Batch) -> None:
        """Back on the loop: the database cannot be written to, so that nobody waits in vain."""
        batch.waiting.release(False)
        self._waiting.release(False)
        self._waiting = _Waiting()

    def retire(self) -> None:
        """Write what is left and end, waiting for nothing: no record will come any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._busy = self._ended = True
        self._batches.put(_Batch(self._pending, self._waiting))
        self._pending, self._waiting = [], _Waiting()
        self._batches.put(None)

    async def drain(self, timeout: float) -> None:
        """Write what is left and end, without blocking the loop."""
        self.retire()
        await asyncio.to_thread(self._thread.join, timeout)
        self.close(0)

    def close(self, timeout: float) -> None:
        """Write what is left and end; blocks for at most `timeout` seconds and a little."""
        self.retire()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._thread.is_alive():
            self._closing.set()
            self._thread.join(1)
        if self.depth:
            self._drop(self.depth, "the database could not be written to before the end")
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
        while (batch := self._batches.get()) is not None:
            self._write(batch)
        self._store.close()

    def _write(self, batch: _Batch) -> None:
        left = list(batch.records)
        refused: list[Record] = []
        attempt = 0
        while not self._closing.is_set():
            try:
                if left:
                    self._write_all(left, refused)
            except DatabaseUnavailable as e:
                delay = self._retry_delays[min(attempt, len(self._retry_delays) - 1)]
                if attempt == 0:
                    logger.error("aibridge: the database cannot be written to, trying again: %s", e)
                attempt += 1
                self._available = False
                self._on_loop(functools.partial(self._unavailable, batch))
                self._closing.wait(delay)
            else:
                if attempt:
                    logger.warning("aibridge: the database can be written to again")
                self._available = True
                self._settled += len(batch.records)
                self._on_loop(functools.partial(self._written, batch, len(refused)))
                return

    def _write_all(self, left: list[Record], refused: list[Record]) -> None:
        """Write these; one by one where the database refuses them together. Whatever is dealt with leaves `left`."""
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

    def _on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
                self._loop.call_soon_threadsafe(callback)
