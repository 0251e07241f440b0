"""Keep the results of a tool loop within bounds: bytes and parts, per result, per turn and per loop. Sans-io.

    results of a turn ─▶ within ─┬─ the turn's results fit into what the turn and the loop have left: unchanged
                                 └─ they do not: each result gets the same share; smaller ones stay whole

Every provider bounds its requests, and an answer whose context is full cannot go on. What is cut gets a note.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from aibridge_addon.dialects.turns import Media, Part, Result, Text

PER_TURN = 4
"""Results of the largest size that a turn may have."""
PER_LOOP = 16
"""Results of the largest size that all turns of an interception may have together."""
NOTE = 256
"""Bytes of a note about what was cut. A result may exceed its bounds by one: it may have been cut before."""
SHORTER = 8
"""The size of all results is divided by this for a context that is full."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one result."""

    max_bytes: int
    """Bytes of UTF-8 and base64."""
    max_parts: int


UNBOUNDED = Bounds(sys.maxsize, sys.maxsize)


@dataclass(slots=True)
class ResultBounds:
    """What the results of a loop may still take."""

    each: Bounds
    _bytes: int
    _parts: int

    @classmethod
    def of(cls, each: Bounds) -> ResultBounds:
        return cls(each, each.max_bytes * PER_LOOP, each.max_parts * PER_LOOP)

    def within(self, results: Sequence[Result]) -> tuple[Result, ...]:
        """Return the results of a turn, cut as far as the bounds demand it."""
        most_bytes = min(self.each.max_bytes * PER_TURN, self._bytes)
        most_parts = min(self.each.max_parts * PER_TURN, self._parts)
        cut = shared(results, most_bytes, most_parts, self.each)
        self._bytes -= min(self._bytes, sum(map(size_of, cut)))
        self._parts -= min(self._parts, sum(len(result.parts) for result in cut))
        return cut


def shared(results: Sequence[Result], most_bytes: int, most_parts: int, each: Bounds) -> tuple[Result, ...]:
    """Cut the largest results until all together, and each by itself, are within the bounds."""
    bytes_each = _level([min(size_of(result), each.max_bytes) for result in results], most_bytes)
    parts_each = _level([min(len(result.parts), each.max_parts) for result in results], most_parts)
    bytes_each, parts_each = min(bytes_each, each.max_bytes), min(parts_each, each.max_parts)
    return tuple(cut_result(result, bytes_each, parts_each) for result in results)


def shortened(results: Sequence[Result]) -> tuple[Result, ...] | None:
    """Return much shorter results, for a context that is full; None if that would not make them shorter."""
    total = sum(map(size_of, results))
    cut = shared(results, total // SHORTER, sys.maxsize, UNBOUNDED)
    return cut if sum(map(size_of, cut)) < total else None


def without_media(results: Sequence[Result]) -> tuple[Result, ...] | None:
    """Return the results with notes in place of media, which a provider may not accept; None if there are none."""
    if not any(isinstance(part, Media) for result in results for part in result.parts):
        return None
    return tuple(replace(result, parts=tuple(map(_note, result.parts))) for result in results)


def cut_result(result: Result, max_bytes: int, max_parts: int) -> Result:
    """Cut a result, and say so in a text at its end. Media that do not fit become notes."""
    total = size_of(result)
    if total <= max_bytes + NOTE and len(result.parts) <= max_parts + 1:
        return result
    shown: list[Part] = []
    left, kept = max_bytes, 0
    for part in result.parts[:max_parts]:
        size = _size(part)
        if size <= left:
            shown.append(part)
            left -= size
            kept += size
        elif isinstance(part, Media):
            shown.append(Text(part.note))
            left -= min(left, len(part.note))
        else:
            start = part.text.encode("utf-8", "replace")[:left].decode("utf-8", "ignore")
            shown += [Text(start)] if start.strip() else []
            kept += len(start.encode())
            break  # nothing after a text that was cut
    shown.append(Text(f"[The result was too large: {total - kept} of {total} bytes were cut]"))
    return replace(result, parts=tuple(shown))


def size_of(result: Result) -> int:
    """Return the bytes of a result's parts."""
    return sum(map(_size, result.parts))


def _size(part: Part) -> int:
    return len((part.text if isinstance(part, Text) else part.data).encode("utf-8", "replace"))


def _note(part: Part) -> Part:
    return part if isinstance(part, Text) else Text(part.note)


def _level(sizes: Iterable[int], most: int) -> int:
    """Return the largest size that each may have, so that all together have at most `most`."""
    left, level = most, 0
    ordered = sorted(sizes)
    for number, size in enumerate(ordered):
        level = left // (len(ordered) - number)
        if size > level:
            return level
        left -= size
    return max(level, ordered[-1] if ordered else 0)
