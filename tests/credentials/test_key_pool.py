"""Central keys: their order, their rests, and the answer when none is left. The clock is the test's."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from aibridge_addon.credentials.key_pool import MAX_REST, KeyPool
from aibridge_addon.records import KeyPoolState

SECRETS = ["sk-first-0000000000000001", "sk-second-000000000000002", "sk-third-0000000000000003"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pool_of(clock: Clock, n: int = 3) -> KeyPool:
    return KeyPool([SecretStr(secret) for secret in SECRETS[:n]], clock)


def test_the_first_key_is_used_as_long_as_it_does_not_rest(clock: Clock) -> None:
    pool = pool_of(clock)
    assert [pool.choose(), pool.choose()] == [pool.keys[0], pool.keys[0]]


@pytest.mark.parametrize(("asked", "rests"), [(None, 60.0), (7.0, 7.0), (0.0, 0.0), (1e12, MAX_REST)])
def test_a_key_rests_as_long_as_the_provider_says_else_a_minute(
    clock: Clock, asked: float | None, rests: float
) -> None:
    pool = pool_of(clock)
    pool.rest(pool.keys[0], asked, rate_limited=True)
    if rests:
        clock.now += rests - 0.01
        assert pool.choose() == pool.keys[1]
        clock.now += 0.01
    assert pool.choose() == pool.keys[0]


def test_keys_that_this_request_has_tried_are_not_chosen_again(clock: Clock) -> None:
    pool = pool_of(clock)
    assert pool.choose(but=pool.keys[:2]) == pool.keys[2]
    assert pool.choose(but=pool.keys) is None


def test_when_all_keys_are_rate_limited_the_first_that_comes_back_says_when(clock: Clock) -> None:
    pool = pool_of(clock)
    for key, seconds in zip(pool.keys, (30.0, 10.2, 20.0), strict=True):
        pool.rest(key, seconds, rate_limited=True)
    assert pool.choose() is None
    assert (pool.exhausted().status, pool.exhausted().retry_after) == (429, 11)
    clock.now += 10.0
    assert pool.exhausted().retry_after == 1


def test_when_no_key_is_accepted_there_is_nothing_to_wait_for(clock: Clock) -> None:
    pool = pool_of(clock, 2)
    for key in pool.keys:
        pool.rest(key, None, rate_limited=False)
    assert (pool.exhausted().status, pool.exhausted().retry_after) == (502, None)


def test_a_rest_that_is_taken_back_ends_no_other_of_the_same_key_and_model(clock: Clock) -> None:
    pool = pool_of(clock, 2)
    key = pool.keys[0]
    pool.rest(key, 20.0, rate_limited=True, model="m")
    about_the_request = pool.rest(key, 5.0, rate_limited=True, model="m")
    pool.wake(about_the_request)
    assert pool.choose(model="m") is not key, "it was rate limited before"
    clock.now += 19.9
    assert pool.choose(model="m") is not key
    clock.now += 0.2
    assert pool.choose(model="m") is key
    about_the_request = pool.rest(key, 5.0, rate_limited=True, model="m")
    pool.rest(key, 30.0, rate_limited=True, model="m")
    pool.wake(about_the_request)
    assert pool.choose(model="m") is not key, "it was rate limited since"
    pool.wake(pool.rest(key, None, rate_limited=False, model="other"))
    assert pool.choose(model="other") is key


def test_a_single_key_never_rests(clock: Clock) -> None:
    pool = pool_of(clock, 1)
    pool.rest(pool.keys[0], None, rate_limited=True)
    assert pool.choose() == pool.keys[0]
    assert pool.choose(but=pool.keys) is None


def test_no_key_is_ever_printed(clock: Clock) -> None:
    pool = pool_of(clock)
    shown = f"{pool.keys} {pool.keys[0]!r} {pool.keys[0]} {pool.exhausted()}"
    assert not any(secret in shown for secret in SECRETS)
    assert "sk-f...0001" in shown


def test_a_rest_that_is_over_does_not_count_when_no_key_is_left(clock: Clock) -> None:
    """A rate limit of an hour ago must not turn "not accepted" into "try again in a second"."""
    pool = pool_of(clock)
    pool.rest(pool.keys[0], 10.0, rate_limited=True)
    clock.now += 10.0
    for key in pool.keys[1:]:
        pool.rest(key, 30.0, rate_limited=False)
    assert pool.choose(but=[pool.keys[0]]) is None
    assert pool.wait() == 30.0
    assert (pool.exhausted().status, pool.exhausted().retry_after) == (502, None)


def test_the_state_counts_keys_until_their_rests_are_over(clock: Clock) -> None:
    pool = pool_of(clock)
    pool.rest(pool.keys[0], 10, rate_limited=True)
    pool.rest(pool.keys[1], None, rate_limited=False)
    assert pool.state("p") == KeyPoolState("p", valid=1, rate_limited=1, unauthorized=1)
    clock.now += 10
    assert pool.state("p") == KeyPoolState("p", valid=2, rate_limited=0, unauthorized=1)
