"""The memory that a reader has for one answer, and texts that arrive in pieces. Sans-io."""

from __future__ import annotations

import sys
from collections.abc import Callable

from aibridge_addon.wire.json_object import encode

STEP = 64 * 1024
"""Bytes that a room asks for at a time."""
PART_COST = 512
"""Bytes that a part counts in addition to its content."""
MAX_PIECES = 512
"""Pieces of a text that are kept apart. A piece of a few characters takes ten times as much memory by itself."""


FEW = 8


def _always(_size: int) -> bool:
    return True


class Room:
    """The bytes that a reader may still keep of one answer. What exceeds them is dropped."""

    __slots__ = ("_granted", "_grow", "_left", "exceeded")

    def __init__(self, limit: int = sys.maxsize, grow: Callable[[int], bool] = _always) -> None:
        """`grow` takes bytes from a budget that all answers share. It returns False if it has none left."""
        self.exceeded = False
        """Something was dropped."""
        self._left = limit
        self._granted = 0
        self._grow = grow

    def take(self, size: int) -> bool:
        """Take `size` bytes. Returns False, from the first time on, if there are not enough."""
        if self.exceeded:
            return False
        if size > self._granted:
            step = min(max(size, STEP), self._left)
            if step < size or not self._grow(step):
                self.exceeded = True
                return False
            self._left -= step
            self._granted += step
        self._granted -= size
        return True


class Pieces:
    """A text that arrives in pieces."""

    __slots__ = ("_joined", "_pieces")

    def __init__(self, text: str = "") -> None:
        self._joined: list[str] = []
        self._pieces: list[str] = [text] if text else []

    def __bool__(self) -> bool:
        return bool(self._pieces or self._joined)

    def add(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            if len(self._pieces) > MAX_PIECES:
                self._joined.append("".join(self._pieces))
                self._pieces.clear()

    @property
    def are_few(self) -> bool:
        return not self._joined and len(self._pieces) <= FEW

    def text(self) -> str:
        return "".join((*self._joined, *self._pieces))


def size_of(value: object) -> int:
    """Return about how many bytes a decoded JSON value takes. What is encoded for it is not kept."""
    return len(encode(value)) if value else 0
