"""Tests of `aibridge_addon/ids.py`."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.ids import RANDOM_BITS, ordered_id

AT = datetime(2026, 11, 28, 21, 30, tzinfo=UTC)
chances = st.integers(0, (1 << RANDOM_BITS) - 1)
times = st.datetimes(datetime(1971, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC))


def test_an_id_is_that_of_the_standards_example() -> None:
    at = datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)  # RFC 9562, appendix A.6
    assert ordered_id(at, 0xCC3 << 62 | 0x18C4DC0C0C07398F) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(times, chances)
def test_an_id_is_a_uuid_of_version_7(at: datetime, chance: int) -> None:
    found = uuid.UUID(ordered_id(at, chance))
    assert (found.version, found.variant) == (7, uuid.RFC_4122)


@given(times, chances, chances)
def test_ids_are_in_the_order_of_their_times(at: datetime, chance: int, other: int) -> None:
    assert ordered_id(at, chance) < ordered_id(at + timedelta(milliseconds=1), other)


@given(chances, chances)
def test_ids_of_one_moment_differ_where_their_random_bits_do(chance: int, other: int) -> None:
    assert (ordered_id(AT, chance) == ordered_id(AT, other)) == (chance == other)


@pytest.mark.parametrize("at", [datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_a_time_that_the_format_cannot_hold_makes_an_id_all_the_same(at: datetime) -> None:
    assert uuid.UUID(ordered_id(at, 0)).version == 7
