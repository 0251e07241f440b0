"""The line of an interception: its columns at every width, and what is shortened first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.cells import cell_len

from aibridge_addon.telemetry.log.line import Line

LINE = Line(
    ended_at=datetime(2026, 3, 4, 12, 30, 15, tzinfo=UTC),
    actor="alice@example.com",
    client="Claude Code",
    provider="anthropic",
    model="claude-sonnet-4-5-20250929",
    new_input=1234,
    cached=45_600,
    output=512,
    cost=0.0123,
    first_byte=0.84,
    seconds=12.34,
    calls=2,
    error=None,
)
SMALL = replace(LINE, actor="bo", client="curl", model="m", new_input=3, cached=0, output=1, cost=None, calls=0)
FAILED = replace(LINE, new_input=0, cached=0, output=0, cost=None, error="rate_limit_error (429)")
UNREACHABLE = replace(FAILED, error="upstream_unreachable", reason="Connect call failed ('127.0.0.1', 18999)\n\x1b[2J")
HOSTILE = replace(LINE, actor="\x1b[2J\u202eevil\n" * 50, model="模型" * 40 + "\x00", client="<b>\ud800")


@pytest.mark.parametrize("width", [None, 132, 160])
def test_a_failed_connection_has_its_address_and_reason(width: int | None) -> None:
    assert "failed: upstream_unreachable: Connect call failed ('127.0.0.1', 18999)" in UNREACHABLE.text(width)


@pytest.mark.parametrize("width", [40, 72, 80, 100, 120, 132, 160, 220])
@pytest.mark.parametrize("line", [LINE, SMALL, FAILED, UNREACHABLE, HOSTILE])
def test_a_line_fits_the_terminal(line: Line, width: int) -> None:
    text = line.text(width)
    assert cell_len(text) <= width
    assert text.isprintable()


@pytest.mark.parametrize("width", [80, 100, 120, 132, 160, 220, None])
def test_the_numbers_of_all_lines_are_below_each_other(width: int | None) -> None:
    first, second = LINE.text(width), SMALL.text(width)
    assert first.index("12.3s") == second.index("12.3s")
    assert first.index("0.8s") == second.index("0.8s")
    assert cell_len(first) == cell_len(second)


@pytest.mark.parametrize("width", [80, 120, 160, None])
def test_every_number_is_there_at_every_width(width: int | None) -> None:
    text = LINE.text(width)
    for shown in ("alice", "claude-sonnet", "1.23k", "45.6k", "512", "$0.0123", "0.8s", "12.3s", "2", "ok"):
        assert shown in text


def test_the_longer_parts_are_shortened_first() -> None:
    narrow, wide = LINE.text(80), LINE.text(160)
    assert "Claude Code" in wide and "Claude Code" not in narrow
    assert "anthropic/claude-sonnet-4-5-20250929" in wide
    assert "1.23k in" in wide and "45.6k cached" in wide and "2 calls" in wide


@pytest.mark.parametrize("width", [80, 160, None])
def test_a_failure_shows_the_type_of_its_error(width: int | None) -> None:
    assert FAILED.text(width).endswith("failed: rate_limit_error (429)")


def test_a_failure_after_tokens_shows_both() -> None:
    text = replace(LINE, error="client_disconnected").text(160)
    assert "512 out" in text and text.endswith("failed: client_disconnected")


def test_nothing_is_shortened_where_the_output_is_no_terminal() -> None:
    text = replace(LINE, model="m" * 90).text()
    assert "m" * 90 in text and "alice@example.com" in text


def test_only_a_terminal_has_colours_and_a_failure_another_one() -> None:
    assert "\x1b" not in LINE.text(80)
    assert LINE.text(80, colour=True).startswith("\x1b[2m")
    assert FAILED.text(80, colour=True).startswith("\x1b[31m")


def test_a_cost_that_is_not_known_is_not_shown_as_zero() -> None:
    assert "n/a" in SMALL.text(80) and "$" not in SMALL.text(80)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0s"), (99.94, "99.9s"), (100, "1m40"), (3599, "59m59"), (7260, "2h01")]
)
def test_a_duration_keeps_its_place_up_to_hours(seconds: float, shown: str) -> None:
    text = replace(LINE, seconds=seconds).text(80)
    assert shown in text and cell_len(text) <= 80
