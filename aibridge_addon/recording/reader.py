"""Ask the database without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime
from typing import Protocol

from aibridge_addon.records import DatabaseUnavailable, Stored

TIMEOUT = 4.0
"""Seconds. Maximum time that a request waits for a query. It exceeds the time limits of the databases' own readers."""
THREADS = 2
"""Threads that ask. A database that hangs must not occupy the threads of others."""


class BlockingReader(Protocol):
    """Reads kept values on the calling thread. May be called on several threads."""

    def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        """Return the values under these keys that have not expired. Raises DatabaseUnavailable."""

    def close(self) -> None: ...


class BlockingLedger(BlockingReader, Protocol):
    """Claims keys on the calling thread, too."""

    def claim(self, key: str, now: datetime, expires_at: datetime) -> bool:
        """Take a key. Returns False if it was taken before and has not expired. Raises DatabaseUnavailable."""


async def answer_of[Result](query: Callable[[], Result], threads: Executor, timeout: float) -> Result:
    """Ask on one of these threads. Raises DatabaseUnavailable, also after `timeout` seconds; the query then goes on."""
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.get_running_loop().run_in_executor(threads, query)
    except TimeoutError:
        raise DatabaseUnavailable(f"a query takes longer than {timeout:g} seconds") from None


class AsyncReader:
    """Implements `continuations.Reader` for all databases. Every query runs on a thread of its own."""

    def __init__(self, reader: BlockingReader) -> None:
        self._reader = reader
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="aibridge-reader")

    async def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        return await self._on_thread(lambda: self._reader.read(keys, now))

    async def _on_thread[Result](self, query: Callable[[], Result]) -> Result:
        return await answer_of(query, self._threads, TIMEOUT)

    def close(self) -> None:
        """Close the connection. The threads end with this object, because a request in progress may still read."""
        self._reader.close()


class AsyncLedger(AsyncReader):
    """Implements `once.Ledger` for all databases."""

    def __init__(self, ledger: BlockingLedger) -> None:
        super().__init__(ledger)
        self._ledger = ledger

    async def claim(self, key: str, now: datetime, expires_at: datetime) -> bool:
        return await self._on_thread(lambda: self._ledger.claim(key, now, expires_at))
