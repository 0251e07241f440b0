"""The bytes of requests and answers that are in memory at the same time: a part of `limits.buffered`. Sans-io.

Buffers ─ share ─┬─▶ Share of a request: its body, and an answer that is buffered for the client
                 └─▶ Share of an interception: what is kept of its answers for the record
"""

from __future__ import annotations

from collections.abc import Callable

from aibridge_addon.records.memory import Memory, Part

LIMIT = "limits.buffered"


class Buffers:
    """Counts the bytes of all shares. Used on one thread; `used` may be read on any."""

    def __init__(self, memory: Memory) -> None:
        self.part = memory.part()

    @property
    def used(self) -> int:
        return self.part.used

    def count_in(self, memory: Memory) -> None:
        """Use this budget from now on. Call it before there is a share."""
        self.part = memory.part()

    def share(self) -> Share:
        """Return a new, empty share."""
        return Share(self.part)


class Share:
    """The bytes of one request or interception."""

    __slots__ = ("_ended", "_part", "size")

    def __init__(self, part: Part) -> None:
        self.size = 0
        self._part = part
        self._ended = False

    def add(self, size: int) -> bool:
        """Grow by `size` bytes. Returns False, and stays as it is, if the budget has no room for them."""
        if self._ended or not self._part.add(size):
            return False
        self.size += size
        return True

    def give_back(self, size: int) -> None:
        """Shrink by `size` bytes that were added before."""
        size = min(size, self.size)
        self._part.give_back(size)
        self.size -= size

    def end(self) -> None:
        """Give all bytes back. The share does not grow any more."""
        self.give_back(self.size)
        self._ended = True

    def ending(self, left: Callable[[], None]) -> Callable[[], None]:
        """Return a function that ends the share and then calls `left`."""

        def end() -> None:
            self.end()
            left()

        return end
