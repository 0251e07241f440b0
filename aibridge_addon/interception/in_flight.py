"""The requests whose answers have not ended yet. A stop waits for them, and so does the end of a retired bridge."""

from __future__ import annotations

import itertools
from collections.abc import Callable


class InFlight:
    def __init__(self) -> None:
        self._requests: dict[int, tuple[Callable[[], None], Callable[[], str]]] = {}
        self._numbers = itertools.count()
        self._when_empty: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def enter(self, cut_off: Callable[[], None], describe: Callable[[], str]) -> Callable[[], None]:
        """Add a request.

        Args:
            cut_off: Ends its record when the process stops before its answer has ended.
            describe: Returns what the request is, for the log. The text contains names that clients choose.

        Returns:
            A function that removes the request. Call it after the last record; further calls have no effect.
        """
        number = next(self._numbers)
        self._requests[number] = cut_off, describe

        def leave() -> None:
            self._requests.pop(number, None)
            if not self._requests:
                callbacks, self._when_empty = self._when_empty, []
                for callback in callbacks:
                    callback()

        return leave

    def cut_off(self) -> None:
        """End the records of all requests that are still in flight."""
        for end, _ in list(self._requests.values()):
            end()

    def descriptions(self) -> list[str]:
        """Return what each request is, the oldest first."""
        return [describe() for _, describe in self._requests.values()]

    def when_empty(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when no request is in flight. If there is none now, call it at once."""
        if self._requests:
            self._when_empty.append(callback)
        else:
            callback()
