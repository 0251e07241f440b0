"""Values of rows: their text is what all readers of the database expect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.recording.rows import timestamp

ZONES = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=ZONES))
def test_a_time_is_in_utc_with_all_of_its_microseconds(moment: datetime) -> None:
    assert timestamp(moment) == moment.astimezone(UTC).isoformat(timespec="microseconds")


def test_a_whole_second_has_microseconds_so_that_times_sort_as_text() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert timestamp(moment) == "2026-01-02T03:04:05.000000+00:00"
    assert timestamp(moment + timedelta(microseconds=1)) == "2026-01-02T03:04:05.000001+00:00"
