"""What waits on one connection: large results for their callers, and a server's requests for our answers. Bounded."""

from __future__ import annotations

from itertools import count
from typing import Any

MAX_HELD = 64 << 20
"""Bytes of large results that wait for their callers, as they were sent."""
MAX_WAITING = 16
"""Requests of a server that wait for an answer. Further ones are ignored."""

Id = int | str
"""Of a JSON-RPC request."""


class HeldResults:
    """Large results, while small messages in their place pass the library."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Any, int]] = {}
        self._keys = count()
        self._size = 0

    def hold(self, result: Any, size: int) -> int:
        """Return the key of a result. If there are too many, the oldest are dropped: their callers are gone."""
        key = next(self._keys)
        self._held[key] = result, size
        self._size += size
        while self._size > MAX_HELD and len(self._held) > 1:
            self._size -= self._held.pop(next(iter(self._held)))[1]
        return key

    def take(self, key: int) -> Any:
        """Return a result, and forget it. Raises KeyError if it was dropped."""
        result, size = self._held.pop(key)
        self._size -= size
        return result


class ServerRequests:
    """A server's own requests that wait for our answer. A server may send them without end."""

    def __init__(self) -> None:
        self._waiting: set[Id] = set()

    def admits(self, id: Id) -> bool:
        """Note a request. Return False if it is to be ignored, as there are too many, or one with this id."""
        if id in self._waiting or len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.add(id)
        return True

    def ended(self, id: Any) -> None:
        """Note that a request was answered, or that the server has given it up."""
        if isinstance(id, int | str):
            self._waiting.discard(id)
