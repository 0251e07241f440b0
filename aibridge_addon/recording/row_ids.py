"""New ids of rows, many of which are drawn at once."""

from __future__ import annotations

import os
from datetime import datetime

from aibridge_addon.ids import RANDOM_BITS, ordered_id

BYTES = (RANDOM_BITS + 7) // 8
MANY = 256
"""Ids for which the system is asked at once. Each time, the thread lets others run, and has to wait for its turn."""


class RowIds:
    """Used on one thread."""

    def __init__(self) -> None:
        self._chances: list[int] = []

    def new(self, at: datetime) -> str:
        if not self._chances:
            data = os.urandom(BYTES * MANY)
            self._chances = [int.from_bytes(data[start : start + BYTES]) for start in range(0, len(data), BYTES)]
        return ordered_id(at, self._chances.pop() >> 8 * BYTES - RANDOM_BITS)
