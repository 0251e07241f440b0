"""What follows from an attempt that failed: the table, the pauses, and the two over several attempts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from aibridge_addon.credentials.key_pool import KeyPool
from aibridge_addon.interception.attempts import MAX_REPORTED, Attempts, Outcome, Step, decide, outcome_of, pause

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SHOW, NEXT_KEY, RETRY, EXHAUSTED = Step.SHOW, Step.NEXT_KEY, Step.RETRY, Step.EXHAUSTED
HINTS = ["sk-f...0001", "sk-s...0002"]

NO_ANSWER = None


@pytest.mark.parametrize(
    ("status", "may_retry", "step"),
    [
        # An answer that another attempt would not change
        *[(status, True, SHOW) for status in (200, 201, 304, 400, 401, 403, 404, 413, 422)],
        # One that it might
        *[(status, True, RETRY) for status in (NO_ANSWER, 408, 409, 429, 500, 502, 503, 504, 529)],
        # No retries are left, or none are configured
        *[(status, False, SHOW) for status in (NO_ANSWER, 200, 401, 408, 409, 429, 500, 529)],
    ],
)
def test_without_a_choice_of_keys(status: int | None, may_retry: bool, step: Step) -> None:
    assert decide(Outcome(status), refuses_key=False, other_key=False, may_retry=may_retry) is step


@pytest.mark.parametrize(
    ("status", "should_retry", "may_retry", "step"),
    [
        (400, True, True, RETRY),
        (200, None, True, SHOW),
        (529, False, True, SHOW),
        (429, False, True, SHOW),
        (400, True, False, SHOW),
        (529, True, False, SHOW),
    ],
)
def test_the_provider_may_ask_to_retry_or_not_to(
    status: int, should_retry: bool | None, may_retry: bool, step: Step
) -> None:
    outcome = Outcome(status, should_retry)
    assert decide(outcome, refuses_key=False, other_key=False, may_retry=may_retry) is step


@pytest.mark.parametrize(
    ("status", "other_key", "may_retry", "step"),
    [
        (429, True, False, NEXT_KEY),
        (429, True, True, NEXT_KEY),
        (401, True, False, NEXT_KEY),
        (401, True, True, NEXT_KEY),
        (429, False, True, RETRY),
        (429, False, False, EXHAUSTED),
        (401, False, True, EXHAUSTED),
        (401, False, False, EXHAUSTED),
        (403, True, True, SHOW),
        (400, True, True, SHOW),
        (529, True, True, RETRY),
        (529, True, False, SHOW),
        (NO_ANSWER, True, True, RETRY),
        (NO_ANSWER, True, False, SHOW),
    ],
)
def test_with_one_of_several_central_keys(status: int | None, other_key: bool, may_retry: bool, step: Step) -> None:
    assert decide(Outcome(status), refuses_key=True, other_key=other_key, may_retry=may_retry) is step


@pytest.mark.parametrize("should_retry", [True, False])
def test_another_key_is_no_retry_so_the_provider_is_not_heard_about_it(should_retry: bool) -> None:
    outcome = Outcome(429, should_retry)
    assert decide(outcome, refuses_key=True, other_key=True, may_retry=True) is NEXT_KEY


# --- reading an answer's head -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "3600"}, 3600.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:04:35 GMT"}, 30.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:04:00 GMT"}, None),
        ({"retry-after": "Fri, 02 Jan 2026 03:04:35"}, 30.0),
        ({"retry-after": "Fri, 99 Jan 2026"}, None),
    ],
)
def test_retry_after_is_milliseconds_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert outcome_of(429, headers, NOW).retry_after == seconds


@pytest.mark.parametrize(
    ("value", "wish"), [("true", True), ("false", False), ("TRUE", True), ("", None), ("yes", None)]
)
def test_x_should_retry_is_true_false_or_nothing(value: str, wish: bool | None) -> None:
    assert outcome_of(500, {"x-should-retry": value}, NOW).should_retry is wish


@given(value=st.text(max_size=40))
def test_no_header_makes_it_fail(value: str) -> None:
    outcome = outcome_of(429, {"retry-after": value, "retry-after-ms": value, "x-should-retry": value}, NOW)
    assert outcome.retry_after is None or outcome.retry_after >= 0


# --- pauses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry", "asked", "jitter", "seconds"),
    [
        (0, None, 0.0, 0.5),
        (1, None, 0.0, 1.0),
        (4, None, 0.0, 8.0),
        (9, None, 0.0, 8.0),
        (0, None, 1.0, 0.375),
        (9, None, 1.0, 6.0),
        (0, 0.0, 1.0, 0.0),
        (3, 59.9, 1.0, 59.9),
        (0, 60.0, 0.0, 0.5),
        (0, 3600.0, 0.0, 0.5),
    ],
)
def test_a_pause_is_what_the_provider_asks_for_below_a_minute_else_it_doubles(
    retry: int, asked: float | None, jitter: float, seconds: float
) -> None:
    assert pause(retry, asked, jitter) == pytest.approx(seconds)


# --- several attempts -------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def pool(clock: Clock | None = None) -> KeyPool:
    secrets = [SecretStr("sk-first-0000000000000001"), SecretStr("sk-second-000000000000002")]
    return KeyPool(secrets, clock or Clock())


def steps(attempts: Attempts, *outcomes: Outcome) -> list[Step]:
    taken = []
    for outcome in outcomes:
        attempts.choose_key()
        taken.append(attempts.after(outcome, jitter=0.0))
    return taken


def test_retries_are_counted() -> None:
    attempts = Attempts(max_retries=2)
    assert steps(attempts, *[Outcome(529)] * 3) == [RETRY, RETRY, SHOW]


def test_each_turn_has_retries_of_its_own() -> None:
    attempts = Attempts(max_retries=1)
    assert steps(attempts, Outcome(529), Outcome(529)) == [RETRY, SHOW]
    attempts.answered(200)
    assert steps(attempts, Outcome(529)) == [RETRY]


def test_a_change_of_keys_costs_no_retry() -> None:
    attempts = Attempts(pool(), max_retries=1)
    assert steps(attempts, Outcome(429), Outcome(529), Outcome(529)) == [NEXT_KEY, RETRY, SHOW]


def test_no_key_is_tried_twice_in_a_row_even_if_it_need_not_rest() -> None:
    attempts = Attempts(pool())
    outcomes = [Outcome(429, retry_after=0.0)] * 2
    assert steps(attempts, *outcomes) == [NEXT_KEY, EXHAUSTED]


def test_when_every_key_is_limited_a_retry_waits_for_the_first_that_comes_back() -> None:
    attempts = Attempts(pool(), max_retries=1)
    assert steps(attempts, Outcome(429, retry_after=5.0), Outcome(429, retry_after=20.0)) == [NEXT_KEY, RETRY]
    assert attempts.pause == 5.0


@pytest.mark.parametrize("answered_after", [0.0, 0.2, 20.0])
def test_nobody_waits_a_minute_for_a_key(answered_after: float) -> None:
    clock = Clock()
    attempts = Attempts(pool(clock), max_retries=1)
    assert steps(attempts, Outcome(429)) == [NEXT_KEY]
    clock.now += answered_after  # the second key's refusal takes its time, in which the first one rests already
    assert steps(attempts, Outcome(429)) == [EXHAUSTED]


def test_a_key_that_is_refused_as_unknown_rests_a_minute_whatever_the_provider_says() -> None:
    attempts = Attempts(pool())
    steps(attempts, Outcome(401, retry_after=1.0), Outcome(401, retry_after=1.0))
    assert attempts.pool is not None
    assert attempts.pool.wait() == 60.0 and attempts.pool.exhausted().status == 502


def test_a_single_key_is_never_exhausted_the_providers_own_answer_is_shown() -> None:
    single = KeyPool([SecretStr("sk-first-0000000000000001")], Clock())
    attempts = Attempts(single, max_retries=1)
    assert steps(attempts, Outcome(401), Outcome(429), Outcome(429)) == [SHOW, RETRY, SHOW]
    assert attempts.choose_key() is not None


def test_what_is_told_of_the_attempts() -> None:
    attempts = Attempts(pool(), max_retries=1)
    steps(attempts, Outcome(429), Outcome(None, error="connection refused"))
    attempts.choose_key()
    attempts.answered(200)
    assert attempts.reported == [
        {"status": 429, "credential_hint": HINTS[0], "then": "next_key"},
        {
            "status": None,
            "error": "connection refused",
            "credential_hint": HINTS[1],
            "then": "retry",
            "pause_ms": 500,
        },
        {"status": 200, "credential_hint": HINTS[1]},
    ]


def test_the_last_attempt_is_told_even_if_nobody_answered_it() -> None:
    attempts = Attempts(max_retries=1)
    steps(attempts, Outcome(503), Outcome(None, error="x" * 1000))
    assert attempts.reported[1:] == [{"status": None, "error": "x" * 200}]


def test_nothing_is_told_of_a_request_that_was_sent_once() -> None:
    attempts = Attempts(pool(), max_retries=1)
    attempts.choose_key()
    attempts.answered(200)
    assert attempts.reported == []


def test_what_is_told_is_bounded() -> None:
    attempts = Attempts(max_retries=1)
    for _ in range(MAX_REPORTED):
        steps(attempts, Outcome(529))
        attempts.answered(200)
    assert len(attempts.reported) == MAX_REPORTED
