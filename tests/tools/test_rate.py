"""How often tools are called: `mcp.servers.<name>.rate`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.config.rate import Rate
from aibridge_addon.tools import CallError
from aibridge_addon.tools.rate import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    count=st.integers(1, 5),
    pauses=st.lists(st.sampled_from([0.0, 0.125, 0.5, 1.0, 3.0]), max_size=30),
    patience=st.sampled_from([0.0, 0.25, 5.0]),
)
def test_no_period_has_more_calls_than_the_rate(count: int, pauses: list[float], patience: float) -> None:
    clock = Clock()
    limit = RateLimit(Rate(count, "s"), clock)
    made = []
    for pause in pauses:
        clock.now += pause
        wait = limit.reserve(patience)
        assert wait <= patience
        if wait >= 0:
            made.append(clock.now + wait)
    assert all(later - earlier >= 1 for earlier, later in zip(made, made[count:], strict=False))


def test_a_call_that_is_not_made_counts_for_nothing() -> None:
    clock = Clock()
    limit = RateLimit(Rate(1, "m"), clock)
    assert limit.reserve(0) == 0
    assert [limit.reserve(5) for _ in range(3)] == [-60] * 3
    clock.now += 60
    assert limit.reserve(0) == 0


async def test_an_error_says_when_to_try_again() -> None:
    limit = RateLimit(Rate(2, "m"), Clock())
    assert [await limit.admit("s", 60) for _ in range(2)] == [0, 0]
    with pytest.raises(CallError, match=r"may be called 2 times per minute, .* try again in 60 s") as error:
        await limit.admit("s", 60)
    assert error.value.kind == "rate"
