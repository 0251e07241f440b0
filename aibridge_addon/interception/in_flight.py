"""The requests whose answers have not ended yet. A stop waits for them, and so does the end of a retired bridge."""

from __future__ import annotations

import itertools
from collections.abc import Callable


class InFlight:
    def __init__(self) -> None:
        self._cut_off: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._when_empty: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._cut_off)

    def enter(self, cut_off: Callable[[], None]) -> Callable[[], None]:
        """Add a request. `cut_off` ends its record when the process stops before its answer has ended.

        Returns:
            A function that removes the request. Call it after the last record; further calls have no effect.
        """
        number = next(self._numbers)
        self._cut_off[number] = cut_off

        def leave() -> None:
            self._cut_off.pop(number, None)
            if not self._cut_off:
                callbacks, self._when_empty = self._when_empty, []
                for callback in callbacks:
                    callback()

        return leave

    def cut_off(self) -> None:
        """End the records of all requests that are still in flight."""
        for end in list(self._cut_off.values()):
            end()

    def when_empty(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when no request is in flight. If there is none now, call it at once."""
        if self._cut_off:
            self._when_empty.append(callback)
        else:
            callback()
