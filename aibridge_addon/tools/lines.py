"""Split a program's output into lines in bounded memory. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

EDGE = 256
"""Bytes of a line's beginning and end that are kept if the line is too large."""
_FIRST_ID = re.compile(rb'\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,18})\s*,').match
_LAST_ID = re.compile(rb'"id"\s*:\s*(\d{1,18})\s*\}\s*\Z').search


class TooLarge(NamedTuple):
    """A line that is larger than the limit."""

    beginning: bytes
    end: bytes

    @property
    def id(self) -> int | None:
        """The id of a message, where the usual encoders put it."""
        found = _FIRST_ID(self.beginning) or _LAST_ID(self.end)
        return int(found[1]) if found else None


class Lines:
    """Take bytes, and return complete lines."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._held = bytearray()
        self._beginning = b""
        """Of a line that is too large."""

    def feed(self, data: bytes) -> list[bytes | TooLarge]:
        """Take the next bytes. Return the lines that are complete now, without their ends."""
        *complete, rest = data.split(b"\n")
        lines: list[bytes | TooLarge] = []
        for part in complete:
            self._hold(part)
            lines.append(self._line())
        self._hold(rest)
        return lines

    def finish(self) -> list[bytes | TooLarge]:
        """Return the last line, which has no end."""
        return [self._line()] if self._held or self._beginning else []

    def _hold(self, part: bytes) -> None:
        self._held += part
        if self._beginning or len(self._held) > self._max_size:
            self._beginning = self._beginning or bytes(self._held[:EDGE])
            del self._held[:-EDGE]

    def _line(self) -> bytes | TooLarge:
        line = TooLarge(self._beginning, bytes(self._held)) if self._beginning else bytes(self._held)
        self._held = bytearray()  # not clear(): that would keep the memory of the largest line
        self._beginning = b""
        return line
