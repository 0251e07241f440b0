"""New ids of rows, whose random bits are drawn for many ids at once."""

from __future__ import annotations

import os
from datetime import datetime

from aibridge_addon.ids import RANDOM_BITS, ordered_id

BYTES = (RANDOM_BITS + 7) // 8
MANY = 256
"""Ids per call of `os.urandom`. Each call releases Python's lock, and waits for it."""


class RowIds:
    """Makes ids. Used on one thread."""

    def __init__(self) -> None:
        self._random: list[int] = []

    def new(self, at: datetime) -> str:
        if not self._random:
            data = os.urandom(BYTES * MANY)
            self._random = [int.from_bytes(data[start : start + BYTES]) for start in range(0, len(data), BYTES)]
        return ordered_id(at, self._random.pop() >> 8 * BYTES - RANDOM_BITS)
