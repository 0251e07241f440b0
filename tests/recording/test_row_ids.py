"""Tests of `aibridge_addon/recording/row_ids.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from aibridge_addon.ids import RANDOM_BITS
from aibridge_addon.recording.row_ids import MANY, RowIds


def test_new_ids_differ_in_all_of_their_random_bits() -> None:
    ids, count = RowIds(), 4 * MANY
    found = [UUID(ids.new(datetime(2026, 11, 28, tzinfo=UTC))).int for _ in range(count)]
    assert len(set(found)) == count
    ones = [sum(id >> bit & 1 for id in found) for bit in range(128)]
    assert sum(0 < number < count for number in ones) == RANDOM_BITS
