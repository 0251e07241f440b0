"""A `recorder.Store` in memory, whose every write can be watched, held and answered by a test."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence

from aibridge_addon.recording.instances import Instance
from aibridge_addon.records import DatabaseUnavailable, Record

PATIENCE = 30.0
"""Seconds after which a test that waits for a write has failed."""


class Refused(Exception):
    """The store does not take a record, now or later."""


class MemoryStore:
    """Writes all of a batch or none of it, as a database does.

    While it is stepped, each write waits until the test lets it go on (`let`), and may be told to fail.
    """

    def __init__(self, *, stepped: bool = False, cannot_open: Exception | None = None) -> None:
        self.records: list[Record] = []
        """What was committed, in order."""
        self.attempts: list[tuple[Record, ...]] = []
        """What each call of `write` was given."""
        self.refused: list[Record] = []
        """Records that it refuses in every batch."""
        self.instances: list[Instance] = []
        """The instance of each sign of life."""
        self.opened = False
        self.closed = False
        self.cannot_open = cannot_open
        self.cannot_register: Exception | None = None
        self._stepped = stepped
        self._steps: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._changed = threading.Condition()

    # --- what the recorder calls, on its thread ---------------------------------------------------------------

    def open(self) -> None:
        if self.cannot_open is not None:
            raise self.cannot_open
        self.opened = True

    def register(self, instance: Instance) -> int:
        if self.cannot_register is not None:
            raise self.cannot_register
        with self._changed:
            self.instances.append(instance)
            self._changed.notify_all()
        return 0

    def write(self, records: Sequence[Record]) -> None:
        with self._changed:
            self.attempts.append(tuple(records))
            self._changed.notify_all()
        if self._stepped:
            outcome = self._steps.get(timeout=PATIENCE)
            if outcome is not None:
                raise outcome
        if any(record in self.refused for record in records):
            raise Refused("out of range\nDETAIL: the whole row")
        with self._changed:
            self.records += records
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    # --- what a test calls, on its loop -----------------------------------------------------------------------

    def let(self, *outcomes: Exception | None) -> None:
        """Let that many writes go on, each with its outcome; without any, one that succeeds."""
        for outcome in outcomes or (None,):
            self._steps.put(outcome)

    def fail(self, times: int = 1) -> None:
        """Let that many writes fail because the database cannot be written to now."""
        self.let(*[DatabaseUnavailable("the disk is full")] * times)

    def let_all(self) -> None:
        """Hold no write from here on."""
        self._stepped = False
        self.let()

    async def attempted(self, count: int) -> None:
        """Wait until `write` has been called that often."""
        await self._until(lambda: len(self.attempts) >= count, f"{count} writes")

    async def written(self, count: int) -> None:
        """Wait until that many records are committed."""
        await self._until(lambda: len(self.records) >= count, f"{count} records")

    async def registered(self, count: int) -> None:
        """Wait for that many signs of life."""
        await self._until(lambda: len(self.instances) >= count, f"{count} signs of life")

    async def ended(self) -> None:
        """Wait until it is closed."""
        await self._until(lambda: self.closed, "its end")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(condition, PATIENCE)

        if not await asyncio.to_thread(wait):
            raise AssertionError(f"waited for {what} in vain: {self.attempts}")
