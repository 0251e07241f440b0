"""Which limits of plans become rows."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from aibridge_addon.dialects.limits import LimitWindow
from aibridge_addon.interception.plan_limits import MAX_KNOWN, Holder, PlanLimits
from aibridge_addon.records import PlanLimit
from tests.support.reading import NOON

ADA = Holder("ada", "anthropic", "sk-a...0001", "digest")
STATED = LimitWindow("5h", 0.42, resets_at=NOON + timedelta(hours=5), metadata={"status": "allowed"})
COUNTED = LimitWindow("requests", 0.02, 5000, 4900, NOON + timedelta(seconds=1), is_counted=True)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


def changes(*said: LimitWindow, after: timedelta = SECOND, holders: tuple[Holder, ...] = ()) -> list[PlanLimit]:
    """What is emitted when an answer says each of these, one `after` the other."""
    emitted: list[PlanLimit] = []
    limits = PlanLimits(emitted.append)
    for number, window in enumerate(said):
        limits.said(holders[number] if holders else ADA, [window], NOON + number * after)
    return emitted


def test_the_first_time_is_a_change_with_all_that_was_said() -> None:
    assert changes(STATED) == [
        PlanLimit(
            initiator_id="ada",
            provider_name="anthropic",
            credential_hint="sk-a...0001",
            window_name="5h",
            used_ratio=0.42,
            limit_value=None,
            remaining=None,
            resets_at=NOON + timedelta(hours=5),
            observed_at=NOON,
            metadata={"status": "allowed"},
        )
    ]


@pytest.mark.parametrize("window", [STATED, COUNTED])
def test_the_same_again_is_no_change(window: LimitWindow) -> None:
    assert len(changes(*[window] * 5)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"used_ratio": 0.43},
        {"used_ratio": None},
        {"metadata": {"status": "rejected"}},
        {"limit": 5.0},
        {"remaining": 5.0},
    ],
)
def test_every_other_word_of_the_provider_is_a_change(change: dict[str, object]) -> None:
    assert len(changes(STATED, replace(STATED, **change))) == 2  # type: ignore[arg-type]


def test_a_counted_share_has_to_move_by_a_step() -> None:
    said = [replace(COUNTED, remaining=5000 - n, used_ratio=round(n / 5000, 6)) for n in range(201)]
    assert [row.used_ratio for row in changes(*said)] == [0.0, 0.01, 0.02, 0.03, 0.04]


def test_the_last_request_and_the_first_new_one_are_changes() -> None:
    said = [replace(COUNTED, remaining=left, used_ratio=round(1 - left / 5000, 6)) for left in (1, 0, 1)]
    assert [row.remaining for row in changes(*said)] == [1, 0, 1]


def test_a_share_without_a_limit_counts_by_its_remainder() -> None:
    said = [replace(COUNTED, limit=None, used_ratio=None, remaining=left) for left in (9, 9, 8)]
    assert [row.remaining for row in changes(*said)] == [9, 8]


def resets(window: LimitWindow, *at: datetime) -> list[LimitWindow]:
    return [replace(window, resets_at=moment) for moment in at]


def test_a_reset_that_moves_before_it_has_passed_is_no_change() -> None:
    said = resets(STATED, *(NOON + timedelta(hours=5, seconds=n) for n in range(10)))
    assert len(changes(*said, after=MINUTE)) == 1


def test_a_window_that_was_renewed_is_a_change_at_most_once_a_minute() -> None:
    said = resets(COUNTED, *(NOON + SECOND * n for n in range(121)))
    assert [row.observed_at - NOON for row in changes(*said)] == [0 * SECOND, MINUTE, 2 * MINUTE]


def test_limits_belong_to_a_credential_and_not_to_an_actor() -> None:
    central = replace(ADA, credential="central sk-a...0001")
    bob = replace(central, initiator_id="bob")
    assert [row.initiator_id for row in changes(STATED, STATED, holders=(central, bob))] == ["ada"]
    other = replace(ADA, credential="other")
    elsewhere = replace(ADA, provider_name="copilot")
    assert len(changes(STATED, STATED, STATED, holders=(ADA, other, elsewhere))) == 3


def test_the_windows_that_are_remembered_are_bounded() -> None:
    emitted: list[PlanLimit] = []
    limits = PlanLimits(emitted.append)
    for number in range(MAX_KNOWN + 1):
        limits.said(replace(ADA, credential=str(number)), [STATED], NOON)
    limits.said(replace(ADA, credential="1"), [STATED], NOON)
    assert len(emitted) == MAX_KNOWN + 1
    limits.said(replace(ADA, credential="0"), [STATED], NOON)
    assert len(emitted) == MAX_KNOWN + 2
