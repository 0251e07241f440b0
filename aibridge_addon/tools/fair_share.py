"""Keep the event loop free for others while a server sends much.

    messages without end ─▶ Pace: a pause after every few of them
    large messages ───────▶ Worker: read in a thread, one at a time for all servers

A server that sends little notices neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

LARGE = 64 << 10
"""Bytes. What is larger is read in a thread. It takes a few milliseconds."""
AT_ONCE = 32
"""Units of work between two pauses. A unit is a message, or `UNIT` bytes."""
UNIT = 32 << 10
"""Bytes."""
PAUSE = 0.005
"""Seconds. With the units of about 0.1 ms, a server gets at most half of the event loop's time."""


class Pace:
    """Pauses the reader of one stream. A server that sends without end is slowed down by the full connection."""

    def __init__(self) -> None:
        self._units = 0

    async def took(self, size: int = 0) -> None:
        """Note a message, or so many bytes of one. Pause if it is time."""
        self._units += max(1, size // UNIT)
        if self._units >= AT_ONCE:
            self._units = 0
            await asyncio.sleep(PAUSE)


class Worker:
    """One thread for all servers. It starts when it is needed first."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "mcp-messages")
        self._closed = False

    def close(self) -> None:
        """End the thread after what was begun. What comes later is done without one."""
        self._closed = True
        self._thread.shutdown(wait=False)

    async def run[Result](self, size: int, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function. `size` is that of its data in bytes: if it is small, no thread is used."""
        if size <= LARGE or self._closed:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def is_large(value: Any) -> bool:
    """Return whether a decoded JSON value takes more than about `LARGE` bytes. Looks at a few thousand values only."""
    left, waiting = LARGE, [value]
    while waiting and left > 0:
        each = waiting.pop()
        if isinstance(each, str):
            left -= len(each)
        elif isinstance(each, dict):
            left -= 16 * len(each)
            if left > 0:
                waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            left -= 16 * len(each)
            if left > 0:
                waiting += each
    return left <= 0
