"""Send every record to the sinks without blocking the event loop.

    event loop                                   thread of the stream            the sinks' own threads
    emit(record) ─▶ pending ─┐
                             ├─▶ batch ─▶ prepare each record, once ─▶ sink.emit ─▶ (queue ─▶ transaction)
    committed() ──▶ waiting ─┘   ▲                                  └▶ sink.flush ─▶ ──────────┐
                                 └──────────────────────── the next batch, if any ◀────────────┘

Preparation (redaction, price) may take milliseconds, so it does not run on the event loop. Sinks receive prepared
records only. Records wait for up to `LINGER`, so that a short interception is one batch. Answers that end during a
flush share the next flush. Under load, that flush waits `GROUP_WINDOW` for more answers.

If a sink raises, the error is logged and the sink gets no further records. Other sinks are not affected. Dropped
records are counted in `lost`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aibridge_addon.recording.sizes import MAX_QUEUED_BYTES, weight_of
from aibridge_addon.records import STORED, Continuation, Record, Sink
from aibridge_addon.records.memory import Memory

logger = logging.getLogger(__name__)

LINGER = 0.1
"""Seconds. Maximum time that a record waits for further records of the same batch."""
GROUP_WINDOW = 0.005
"""Seconds. Under load, a flush waits this long for further answers to end."""
CROWD = 2
"""Number of answers that waited for the last flush from which on there is load."""
MAX_WAITING = 100_000
"""Maximum number of records that wait for the thread, about 100 MB. Later ones are dropped."""
COMMIT_TIMEOUT = 5.0
"""Seconds. Maximum time that an answer's end waits for its rows."""
OVERDUE = 3.5
"""Seconds that an answer's end waits for the database. Then its records go to the spool.

Longer than a store waits for a lock or a silent server, so that its own error is logged in most cases.
"""


@dataclass(slots=True)
class _Waiting:
    """Answers that wait for the same flush."""

    futures: list[asyncio.Future[bool]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    def release(self, kept: bool) -> None:
        if self.timer is not None:
            self.timer.cancel()
        for future in self.futures:
            if not future.done():
                future.set_result(kept)


@dataclass(slots=True)
class _Batch:
    records: list[Record]
    waiting: _Waiting
    size: int = 0
    """Bytes of the records."""
    overdue: bool = False
    """An answer has waited for an earlier flush for too long."""


def _nothing() -> None:
    pass


class RecordStream:
    """Used on one event loop."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        prepare: Callable[[Record], Record],
        *,
        load: Callable[[], None] = _nothing,
        memory: Memory | None = None,
        commit_timeout: float = COMMIT_TIMEOUT,
        overdue: float = OVERDUE,
    ) -> None:
        """`load`: called once on the stream's thread, before the first record. `memory`: their budget."""
        self._sinks = tuple(sinks)
        self._broken: set[int] = set()
        """Values of `id()` of the sinks that have raised."""
        self._prepare = prepare
        self._load = load
        self._commit_timeout = commit_timeout
        self._overdue_after = min(overdue, commit_timeout)
        self._pending: list[Record] = []
        self._waiting = _Waiting()
        self._flushing = False
        """Whether a flush is under way."""
        self._crowd = 0
        """Number of answers that waited for the last flush."""
        self._opened = False
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._part = (memory or Memory(MAX_QUEUED_BYTES)).part(of_records=True)
        """Bytes of the records that were not sent to the sinks. The event loop adds, the thread gives back."""
        self._pending_bytes = 0
        self._handed_over = 0
        """Number of records sent to the thread. Only the event loop changes it."""
        self._handed_out = 0
        """Number of records sent to the sinks. Only the thread changes it."""
        self._refused = 0
        """Number of records dropped on the event loop."""
        self._spoilt = 0
        """Number of records dropped on the thread."""
        self._lost_before = 0
        """Records lost when a flush was last requested. Used on the thread only."""
        self._loaded = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aibridge-records", daemon=True)

    # --- on the event loop ------------------------------------------------------------------------------------

    def count_in(self, memory: Memory) -> None:
        """Use this budget from now on. Call it before the first record."""
        self._part = memory.part(of_records=True)
        for sink in self._sinks:
            sink.count_in(memory)

    def open(self) -> None:
        """Open the sinks. Blocks, and may be called on any thread."""
        self._opened = True
        self._thread.start()
        for sink in self._sinks:
            sink.open()

    def start(self, before: RecordStream | None = None) -> None:
        """Start the sinks, and open them before if `open` was not called.

        `before`: the stream that this one is going to replace. It still runs.
        """
        if not self._opened:
            self.open()
        for sink in self._sinks:
            predecessor = next((old for old in before._sinks if type(old) is type(sink)), None) if before else None
            sink.start(predecessor)

    def wait_until_loaded(self) -> None:
        """Block until the imports of the preparation are done."""
        self._loaded.wait()

    @property
    def depth(self) -> int:
        """Number of records that are not committed yet."""
        return self._in_hand + sum(sink.readiness().waiting for sink in self._sinks)

    @property
    def lost(self) -> int:
        """Number of records that were dropped, here or by a sink."""
        return self._refused + self._spoilt + sum(sink.readiness().lost for sink in self._sinks)

    @property
    def _in_hand(self) -> int:
        return len(self._pending) + self._handed_over - self._handed_out

    @property
    def ended(self) -> bool:
        """Whether the stream and every sink have ended after `close`."""
        return self._ended and not self._thread.is_alive() and all(sink.ended for sink in self._sinks)

    def emit(self, record: Record) -> None:
        """Accept a record for all sinks. Never blocks and never raises."""
        if self._ended:
            self._drop(record, "the bridge had ended before they were emitted")
        elif self._in_hand >= MAX_WAITING:
            self._drop(record, f"{MAX_WAITING} records wait to be prepared")
        elif not self._part.add(size := weight_of(record)):
            self._drop(record, f"requests, answers and records with {self._part.limit} bytes are in memory")
        else:
            self._pending_bytes += size
            self._pending.append(record)
            if self._timer is None:
                self._hand_over_in(LINGER)

    async def committed(self) -> bool:
        """Wait until all records so far are in the database. Returns False if that fails or takes too long."""
        if self._ended:
            return False
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        waiting = self._waiting
        waiting.futures.append(done)
        if waiting.timer is None:
            waiting.timer = loop.call_later(self._overdue_after, self._overdue, waiting)
            if not self._flushing:
                self._hand_over_in(GROUP_WINDOW if self._crowd >= CROWD else 0)
        return await done

    def _overdue(self, waiting: _Waiting) -> None:
        """Have the records stored elsewhere. Those that still wait to be sent to the thread go there first."""
        left = self._commit_timeout - self._overdue_after
        waiting.timer = asyncio.get_running_loop().call_later(left, self._time_out, waiting)
        self._put(_Batch(self._pending, _Waiting(), overdue=True))
        self._pending = []

    def _time_out(self, waiting: _Waiting) -> None:
        waiting.release(False)
        if waiting is self._waiting:  # later calls of `committed` start a new time limit
            self._waiting = _Waiting()

    def _hand_over_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._hand_over)

    def _hand_over(self) -> None:
        """Send the pending records to the thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = _Waiting()
        if not self._flushing:
            waiting, self._waiting = self._waiting, waiting
            self._flushing = bool(waiting.futures)
        self._put(_Batch(self._pending, waiting))
        self._pending = []

    def _put(self, batch: _Batch) -> None:
        self._handed_over += len(batch.records)
        batch.size, self._pending_bytes = self._pending_bytes, 0
        self._batches.put(batch)

    def _flushed(self, waiting: _Waiting, kept: bool) -> None:
        """Release the answers that waited for a flush. Runs on the event loop."""
        self._crowd = len(waiting.futures)
        waiting.release(kept)
        self._flushing = False
        if self._waiting.futures and not self._ended:
            self._hand_over_in(GROUP_WINDOW if self._crowd >= CROWD else 0)

    def retire(self) -> None:
        """Retire the sinks. They still receive records."""
        for sink in self._sinks:
            sink.retire()

    def close(self, timeout: float | None) -> None:
        """Accept no more records, and send the pending ones to the sinks. May be called twice.

        Blocks until the sinks have ended, for about `timeout` seconds at most. None: they end in the background,
        without a time limit.
        """
        self._end()
        if timeout is None:
            return
        deadline = time.monotonic() + timeout
        if self._thread.ident is not None:
            self._thread.join(timeout)
        for sink in sorted(self._sinks, key=lambda sink: not sink.durable):  # rows first: spans matter less
            sink.close(max(0.0, deadline - time.monotonic()))

    async def drain(self, timeout: float | None) -> None:
        """Do the same as `close` without blocking the event loop."""
        self._end()
        if timeout is not None:
            await asyncio.to_thread(self.close, timeout)

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._put(_Batch(self._pending, self._waiting))
        self._pending, self._waiting = [], _Waiting()
        self._batches.put(None)

    def _drop(self, record: Record, reason: str) -> None:
        if type(record) not in STORED:
            return  # no row is missing
        self._refused += 1
        if self._refused % 1000 == 1:
            logger.error("aibridge: %d records lost so far: %s", self._refused, reason)

    # --- on the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._load()
        except Exception:
            logger.exception("aibridge: the imports for preparing records failed")
        finally:
            self._loaded.set()
        while (batch := self._batches.get()) is not None:
            self._hand_out(batch)
        for sink in self._sinks:
            try:
                sink.close(None)
            except Exception:
                logger.exception("aibridge: %s cannot be closed", type(sink).__name__)

    def _hand_out(self, batch: _Batch) -> None:
        prepared = self._prepared(batch.records)
        public = [record for record in prepared if not isinstance(record, Continuation)]
        for sink in self._sinks:
            records = prepared if sink.durable else public
            if records:
                rows = sum(type(record) in STORED for record in records)
                self._call(sink, functools.partial(sink.emit, records), rows)
        self._handed_out += len(batch.records)
        self._part.give_back(batch.size)
        if batch.overdue:
            for sink in self._sinks:
                self._call(sink, sink.overdue)
        if batch.waiting.futures:
            self._flush(batch.waiting)

    def _prepared(self, records: Sequence[Record]) -> list[Record]:
        prepared = []
        for record in records:
            try:
                prepared.append(self._prepare(record))
            except Exception:  # drop it: unprepared, it may contain a secret
                self._spoilt += 1
                if self._spoilt % 1000 == 1:
                    logger.exception("aibridge: a %s cannot be prepared and is lost", type(record).__name__)
        return prepared

    def _flush(self, waiting: _Waiting) -> None:
        databases = [sink for sink in self._sinks if sink.durable]
        lost, before = self._refused + self._spoilt, self._lost_before
        self._lost_before = lost
        done = _All(
            len(databases),
            lambda kept: self._on_loop(functools.partial(self._flushed, waiting, kept and lost == before)),
        )
        for sink in databases:
            if not self._call(sink, functools.partial(sink.flush, done)):
                done(False)

    def _call(self, sink: Sink, call: Callable[[], None], lost: int = 0) -> bool:
        """Call a sink, unless it has raised before. Returns whether the call succeeded."""
        if id(sink) not in self._broken:
            try:
                call()
            except Exception:
                logger.exception("aibridge: %s failed and gets no more records", type(sink).__name__)
                self._broken.add(id(sink))
            else:
                return True
        self._spoilt += lost if sink.durable else 0
        return False

    def _on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits
                self._loop.call_soon_threadsafe(callback)


class _All:
    """Combines `count` callbacks into one, with True if all of them got True. May be called on any thread."""

    def __init__(self, count: int, done: Callable[[bool], None]) -> None:
        self._left = count
        self._kept = True
        self._done = done
        self._lock = threading.Lock()
        if not count:
            done(True)

    def __call__(self, kept: bool) -> None:
        with self._lock:
            self._left -= 1
            self._kept = self._kept and kept
            ended = self._left == 0
        if ended:
            self._done(self._kept)
