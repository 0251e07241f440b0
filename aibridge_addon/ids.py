"""Ids of rows, which the bridge makes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

RANDOM_BITS = 74
"""What an id has besides its time."""
_MILLISECOND = timedelta(milliseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def ordered_id(at: datetime, chance: int) -> str:
    """Return an id of a row: a UUID of version 7 (RFC 9562, section 5.7), which begins with its time in milliseconds.

    Rows that are written together are then beside each other in every index, so inserts and joins touch few pages.

    Args:
        at: Any time. One that the format cannot hold counts as its first or last one.
        chance: `RANDOM_BITS` random bits.
    """
    milliseconds = min(max((at - _EPOCH) // _MILLISECOND, 0), (1 << 48) - 1)
    first, last = chance >> 62 & 0xFFF, chance & (1 << 62) - 1
    digits = f"{milliseconds << 80 | 0x7 << 76 | first << 64 | 0b10 << 62 | last:032x}"
    # A `uuid.UUID` that is made only for its text takes twice as long.
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
