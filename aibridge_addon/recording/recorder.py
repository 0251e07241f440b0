"""The sink that writes records to a database.

    thread of the record stream                             writer thread
    emit(records) ─▶ queue ─▶ up to MAX_TRANSACTION ──────▶ one transaction ─┐
    flush(done) ───▶ flushes ◀─── settled, refused, spooled ◀────────────────┘

    while the database is away:
    emit(records) ─▶ spool (files) ─▶ up to MAX_TRANSACTION ─▶ one transaction

The writer thread takes all waiting records. Records that arrive while it writes form the next transaction, so answers
that end at the same time share a commit.

If the database does not answer, all waiting records go to the spool, and so do later ones, so that their order stays.
They also do if a write takes so long that an answer would end before it (`overdue`).
The thread retries without end. It writes the spool from its oldest record on; when that is empty, records go to the
database again. Where the spool cannot be written to either, records wait in memory, up to the limits in
`recording.sizes`.

A record may be written twice: after a transaction whose outcome is unknown, and from the spool of a process that was
killed. Rows have their ids before they are first written, so the second time changes nothing.

If the database refuses a batch, its halves are written, and so on, until only the refused records are left. They are
dropped. Dropped records are counted in `lost` and logged.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from aibridge_addon import records
from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.recording.instances import HEARTBEAT, Instance
from aibridge_addon.recording.refusals import write_all
from aibridge_addon.recording.row_ids import RowIds
from aibridge_addon.recording.sizes import MAX_QUEUED_BYTES, MAX_TRANSACTION, MAX_TRANSACTION_BYTES, Sizes
from aibridge_addon.recording.spool import Backlog, Chunk, Spool
from aibridge_addon.records import STORED, DatabaseUnavailable, Readiness, Record, Sink
from aibridge_addon.records.members import replace
from aibridge_addon.records.memory import Memory

logger = logging.getLogger(__name__)

RETRY_DELAYS = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to write. The last value repeats."""
JITTER = 0.5
"""Share by which a delay is longer or shorter, so that many processes do not come back at the same moment."""
REFUSED = "the database refused them"


class Store(Protocol):
    """A database. All methods are called on the writer thread."""

    def open(self) -> None:
        """Connect and bring the schema up to date. Raises DatabaseUnavailable."""

    def register(self, instance: Instance) -> int:
        """Record that this instance lives, and end what instances that are gone left open. Returns how many those are.

        Raises DatabaseUnavailable.
        """

    def write(self, records: Sequence[Record]) -> None:
        """Write all of these records or none. A record that was written before changes nothing.

        Raises DatabaseUnavailable. Any other exception: a record is refused.
        """

    def close(self) -> None: ...


class Recorder(Sink):
    durable = True

    def __init__(
        self,
        store: Store,
        spool: Spool,
        instance: Instance,
        *,
        required: bool = False,
        needed_at_start: bool = True,
        spool_needed: bool = False,
        retry_delays: Sequence[float] = RETRY_DELAYS,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        """Create the recorder without starting it.

        Args:
            required: The bridge is not ready while the database is unavailable.
            needed_at_start: Without the database, the start fails. False: records are spooled until it is there.
            spool_needed: Without the spool's folder, the start fails.
            heartbeat: Seconds between two signs of life of this instance.
        """
        self.lost = 0
        """Number of dropped records."""
        self._lost_before = 0
        """`lost` when a flush was last answered."""
        self._store = store
        self._spool = spool
        self._instance = instance
        self.instance_id = instance.id
        self._required = required
        self._needed_at_start = needed_at_start
        self._spool_needed = spool_needed
        self._retry_delays = retry_delays
        self._heartbeat = heartbeat
        self._next_heartbeat = 0.0
        self._adopted: Backlog | None = None
        """Records of a process that has ended. Their batches take turns with those of this process."""
        self._reached = False
        """Whether the database was opened."""
        self._changed = threading.Condition()
        """Protects the attributes below. It is notified when there is work for the thread."""
        self._queue: deque[Record] = deque()
        self._sizes = Sizes(Memory(MAX_QUEUED_BYTES))
        """Of the records that are not settled: those that are being written, then those in the queue."""
        self._writing: Sequence[Record] = ()
        """Records that the thread has taken from the queue."""
        self._flushes: deque[tuple[int, Callable[[bool], None]]] = deque()
        """Pairs of a number of settled records and the callback for when it is reached."""
        self._taken = 0
        """Number of records that were accepted for writing."""
        self._settled = 0
        """Number of records that were written, spooled or refused."""
        self._away = False
        """Whether the database is unavailable, or the spool is not empty yet. Records are spooled."""
        self._spools = True
        """Whether the spool could be written to when that was last tried."""
        self._ended = False
        self._ids = RowIds()
        self._opened = threading.Event()
        self._open_error: Exception | None = None
        self._giving_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aibridge-recorder", daemon=True)

    def count_in(self, memory: Memory) -> None:
        self._sizes = Sizes(memory)

    def open(self) -> None:
        """Open the database. This blocks, and is called once at the start.

        Raises:
            DatabaseUnavailable: The database cannot be opened.
            ConfigError: The folder of the spool cannot be used.
        """
        if self._spool_needed:
            try:
                self._spool.prepare()
            except OSError as e:
                found = f"{self._spool.folder}, {e.strerror or e}"
                raise ConfigError([Problem("recording.spool.path", found, "a folder that can be written to")]) from e
        self._thread.start()
        self._opened.wait()
        if self._open_error is not None:
            raise self._open_error

    def readiness(self) -> Readiness:
        away = self._away
        spooling = not self._required and (self._reached or self._spools)
        return Readiness(
            ready=not away or spooling,
            details={"database": "unavailable" if away else "available"},
            waiting=self._depth,
            lost=self.lost,
            spooled_bytes=self._spool.size,
            degraded=("database",) if away else (),
        )

    @property
    def ended(self) -> bool:
        return self._ended and not self._thread.is_alive()

    @property
    def _alarm(self) -> int:
        """The level of messages about a failure. mitmproxy ends if an error is logged before it listens.

        It listens once there are records.
        """
        return logging.ERROR if self._reached and self._taken else logging.WARNING

    @property
    def _depth(self) -> int:
        return self._taken - self._settled

    def emit(self, records: Sequence[Record]) -> None:
        stored = [self._identified(record) for record in records if type(record) in STORED]
        with self._changed:
            accepted = [] if self._ended else [record for record in stored if self._sizes.accept(record)]
            if len(accepted) < len(stored):
                waiting = f"{self._depth} records with {self._sizes.total} bytes wait for the database"
                self._drop(len(stored) - len(accepted), "the recorder has ended" if self._ended else waiting)
            self._queue.extend(accepted)
            self._taken += len(accepted)
            if self._away and self._spools:
                self._move_to_spool()
            self._changed.notify()

    def _settle(self, count: int) -> None:
        """Count the oldest records as settled. `_changed` is held."""
        self._sizes.remove(count)
        self._settled += count

    def _identified(self, record: Record) -> Record:
        """Add what must be the same when the record is written once more."""
        match record:
            case records.InterceptionStarted():
                return replace(record, instance_id=self._instance.id)
            case (
                records.TokenUsage()
                | records.UserPrompt()
                | records.ToolUsage()
                | records.Answer()
                | records.ModelThought()
            ):
                return replace(record, id=self._ids.new(record.created_at))
            case records.PlanLimit():
                return replace(record, id=self._ids.new(record.observed_at))
        return record

    def flush(self, done: Callable[[bool], None]) -> None:
        """Call `done(True)` when all records received so far are stored, `done(False)` if that is not possible.

        They are stored in the database or, unless it is required, in the spool. A record that was lost since the last
        answered flush makes this one `False`, too.
        """
        with self._changed:
            if self._away:
                kept = self._is_spooled()
            elif (kept := not self._ended) and self._depth:
                self._flushes.append((self._taken, done))
                return
            kept = self._nothing_lost_since() and kept
        done(kept)

    def overdue(self) -> None:
        """Spool what is not written yet. A write in progress may succeed all the same, and is then repeated."""
        if self._depth and not self._away:
            self._lose(TimeoutError("a write takes too long"))

    def _nothing_lost_since(self) -> bool:
        """Return whether no record was lost since the last call. `_changed` is held."""
        before, self._lost_before = self._lost_before, self.lost
        return self.lost == before

    def close(self, timeout: float | None) -> None:
        """Write the waiting records and end. Blocks for about `timeout` seconds at most. None: in the background.

        What cannot be written in time goes to the spool.
        """
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if timeout is None:
            return
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._thread.is_alive():
            self._giving_up.set()
            self._thread.join(1)
        with self._changed:
            if self._depth:
                self._leave_to_spool()
                if not self._thread.is_alive():
                    self._spool.close()
                self._drop(self._depth, "neither the database nor the spool could be written to before the end")
                self._settle(self._depth)

    def _drop(self, count: int, reason: str) -> None:
        if count and (self.lost == 0 or (self.lost + count) // 1000 > self.lost // 1000):
            logger.log(self._alarm, "aibridge: %d records lost so far: %s", self.lost + count, reason)
        self.lost += count

    # --- the spool; `_changed` is held ------------------------------------------------------------------------

    def _leave_to_spool(self) -> None:
        """Move all records in memory to the spool, because the database does not take them now."""
        self._away = True
        self._queue.extendleft(reversed(self._writing))
        self._writing = ()
        self._move_to_spool()

    def _move_to_spool(self) -> None:
        try:
            self._spool.prepare()
            while self._queue:
                some = [self._queue[i] for i in range(self._sizes.of_transaction(len(self._queue)))]
                dropped = self._spool.append(some)
                for _ in some:
                    self._queue.popleft()
                self._settle(len(some))
                self._drop(dropped, f"the spool is full, recording.spool.max_bytes={self._spool.max_bytes}")
        except OSError as e:
            if self._spools:
                logger.log(self._alarm, "aibridge: the spool cannot be written to, records wait in memory: %s", e)
            self._spools = False
        else:
            self._spools = True

    def _is_spooled(self) -> bool:
        """Return whether all records are in the spool for good, and that is enough."""
        if self._required or not self._spools:
            return False
        try:
            self._spool.sync()
        except OSError as e:
            logger.log(self._alarm, "aibridge: the spool cannot be synced to the disk: %s", e)
            return False
        return True

    # --- on the writer thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._open()
        except Exception as e:  # noqa: BLE001 (`start` raises it)
            self._open_error = e
            return
        finally:
            self._opened.set()
        try:
            while not self._giving_up.is_set() and self._work():
                pass
        finally:
            with self._changed:
                if self._queue or self._writing:
                    self._leave_to_spool()
            self._release(self._taken, kept=False)
            self._spool.close()
            self._store.close()

    def _open(self) -> None:
        try:
            self._reach()
        except DatabaseUnavailable as e:
            if self._needed_at_start:
                raise
            self._lose(e)

    def _reach(self) -> None:
        """Open the database if it was not opened yet, and give a sign of life."""
        self._next_heartbeat = time.monotonic() + self._heartbeat
        if not self._reached:
            self._store.open()
            self._reached = True
        if ended := self._store.register(self._instance):
            logger.warning("aibridge: interceptions of processes that have ended, recorded as failed: %d", ended)
        self._adopted = self._spool.adopt()

    def _work(self) -> bool:
        """Do the next piece of work. Returns False at the end."""
        try:
            if self._away:
                return self._replay()
            if batch := self._next():
                self._write(batch)
            elif self._ended:
                return False
            if time.monotonic() >= self._next_heartbeat:
                self._reach()
            if self._adopted is not None:
                self._write_adopted(self._adopted)
        except DatabaseUnavailable as e:
            self._lose(e)
        except Exception as e:  # a mistake of ours must not end the thread
            logger.log(self._alarm, "aibridge: the recorder failed, trying again", exc_info=True)
            self._lose(e)
        return True

    def _next(self) -> Sequence[Record]:
        """Wait for records and return them. Without any, the recorder ends, or there is other work."""
        wait = 0.0 if self._adopted is not None else max(0.0, self._next_heartbeat - time.monotonic())
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended or self._away, wait)
            if not self._away:
                self._take()
            return self._writing

    def _take(self) -> None:
        self._writing = [self._queue.popleft() for _ in range(self._sizes.of_transaction(len(self._queue)))]

    def _write(self, batch: Sequence[Record]) -> None:
        left, refused = list(batch), list[Record]()
        try:
            write_all(self._store.write, left, refused, alarm=self._alarm)
        finally:
            with self._changed:
                if self._writing:  # otherwise, `close` or `overdue` has moved them to the spool
                    self._writing = left
                    self._settle(len(batch) - len(left))
                    self._drop(len(refused), REFUSED)
        self._release(self._settled, kept=True)

    def _lose(self, error: Exception) -> None:
        """Spool records from here on."""
        if not self._away:  # otherwise, an overdue write has failed at last
            logger.log(self._alarm, "aibridge: the database cannot be written to, trying again: %s", error)
        with self._changed:
            self._leave_to_spool()
            kept = self._is_spooled()
            self._changed.notify()
        self._release(self._taken, kept=kept)

    def _replay(self) -> bool:
        """Write the spool to the database until it is empty. Returns False if the end comes first."""
        attempt = 0
        while not self._giving_up.is_set():
            with self._changed:
                delay = self._retry_delays[min(attempt, len(self._retry_delays) - 1)]
                delay *= random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 (spreads load, protects no secret)
                last = self._changed.wait_for(lambda: self._ended, delay)
            attempt += 1
            try:
                self._reach()
                if self._emptied_spool():
                    logger.warning("aibridge: the database can be written to again")
                    return True
            except DatabaseUnavailable:
                pass
            except OSError as e:
                logger.log(self._alarm, "aibridge: the spool cannot be read, trying again: %s", e)
            except Exception:
                logger.log(self._alarm, "aibridge: the recorder failed, trying again", exc_info=True)
            with self._changed:
                self._leave_to_spool()
            if last:
                return False
        return False

    def _emptied_spool(self) -> bool:
        """Write the spool to the database. Returns False if the recorder has to end first."""
        while not self._giving_up.is_set():
            if (chunk := self._spool.read(MAX_TRANSACTION, MAX_TRANSACTION_BYTES)) is not None:
                self._write_chunk(chunk)
                self._spool.done(chunk)
            elif batch := self._next_in_memory():
                self._write(batch)
            elif not self._away:
                return True
        return False

    def _next_in_memory(self) -> Sequence[Record]:
        """Return records that wait in memory behind the spool. If there are none, leave the spool."""
        with self._changed:
            if self._spool.read(1) is None:
                self._take()
                if not self._writing:
                    self._away = False
                    self._spool.clear()
            return self._writing

    def _write_adopted(self, adopted: Backlog) -> None:
        """Write the oldest adopted records. Records of this process do not have to wait for all of them."""
        try:
            chunk = adopted.read(MAX_TRANSACTION, MAX_TRANSACTION_BYTES)
            if chunk is None:
                self._spool.drop_adopted()
                self._adopted = None
                self._next_heartbeat = 0.0  # end now what that process left open, and look for further files
                return
        except OSError as e:
            logger.log(self._alarm, "aibridge: the spool of a process that has ended cannot be read: %s", e)
            self._adopted = None  # until the next heartbeat
            return
        self._write_chunk(chunk)
        adopted.done(chunk)

    def _write_chunk(self, chunk: Chunk) -> None:
        refused = list[Record]()
        write_all(self._store.write, list(chunk.records), refused, alarm=self._alarm)
        with self._changed:
            self._drop(len(refused), REFUSED)
            self._drop(chunk.damaged, "they are damaged in the spool")

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
