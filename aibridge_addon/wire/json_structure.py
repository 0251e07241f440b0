"""Count the values and the depth of JSON text before anything is built of it. Sans-io.

16 KB of gzip can be a list of eight million zeros. Decoded, they take gigabytes and many seconds. Counting them takes
a millisecond for each megabyte, and stops at the limit.

The text need not be valid JSON. All of its opening brackets are counted first, those in strings too. For short texts
this is enough. Closing brackets in strings never count: with them, a text could look flatter than it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

BLOCK = 64
"""Brackets and commas. They are looked at one by one only where all brackets of a block might open."""
PIECE = 256 * 1024
"""Bytes that are counted exactly at a time, so that other threads can run in between. At least 2."""

_STEPS = tuple((code in b"[{") - (code in b"]}") for code in range(256))
_NOT_STRUCTURE = bytes(code for code in range(256) if code not in b"[]{},")


def has_more_values(data: bytes, limit: int) -> bool:
    """Return whether a JSON text has more than about `limit` values. Names of members do not count."""
    if len(data) <= limit or data.count(b",") + data.count(b"[") + data.count(b"{") <= limit:
        return False
    count = 0
    for structure in _structure(data):
        count += structure.count(b",") + structure.count(b"[") + structure.count(b"{")
        if count > limit:
            return True
    return False


def is_deeper(data: bytes, limit: int) -> bool:
    """Return whether arrays and objects are nested more than `limit` deep."""
    if len(data) <= limit or data.count(b"[") + data.count(b"{") <= limit:
        return False
    depth = 0
    for structure in _structure(data):
        for start in range(0, len(structure), BLOCK):
            block = structure[start : start + BLOCK]
            opened = block.count(b"[") + block.count(b"{")
            if depth + opened > limit and max(accumulate(map(_STEPS.__getitem__, block), initial=depth)) > limit:
                return True
            depth += opened - block.count(b"]") - block.count(b"}")
    return False


def _structure(data: bytes) -> Iterator[bytes]:
    """Yield the brackets and commas that are not in strings."""
    start, inside = 0, 0
    while start < len(data):
        end = min(start + PIECE, len(data))
        piece = data[start:end]
        if end < len(data) and (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = piece[:-1]  # an escape is not divided
        start += len(piece)
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        yield b"".join(parts[inside::2]).translate(None, _NOT_STRUCTURE)
        inside = (inside + len(parts) - 1) % 2
