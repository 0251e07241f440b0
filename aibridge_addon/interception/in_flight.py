"""The requests that have not been answered yet: a stop waits for them, and so does the end of a retired bridge."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable


class UnderWay:
    def __init__(self) -> None:
        self._cut_off: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._none = asyncio.Event()
        self._none.set()
        self._when_none: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._cut_off)

    def enter(self, cut_off: Callable[[], None]) -> Callable[[], None]:
        """Add a request. `cut_off` ends its record when the process stops before its answer has ended.

        Returns:
            To be called after its last record has been emitted; further calls have no effect.
        """
        number = next(self._numbers)
        self._cut_off[number] = cut_off
        self._none.clear()

        def leave() -> None:
            self._cut_off.pop(number, None)
            if not self._cut_off:
                self._none.set()
                if self._when_none is not None:
                    self._when_none()

        return leave

    async def wait(self) -> None:
        """Wait until none is left."""
        await self._none.wait()

    def cut_off(self) -> None:
        """End the records of those that are left."""
        for end in list(self._cut_off.values()):
            end()

    def when_none(self, callback: Callable[[], None]) -> None:
        """Call back whenever none is left, which may be now."""
        self._when_none = callback
        if not self._cut_off:
            callback()
