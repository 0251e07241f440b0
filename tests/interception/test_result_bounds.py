"""Results of a loop within bounds: bytes and parts, for each result, each turn and the loop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects.turns import Call, Media, Part, Result, Text
from aibridge_addon.interception.result_bounds import (
    NOTE,
    PER_LOOP,
    PER_TURN,
    UNBOUNDED,
    Bounds,
    ResultBounds,
    cut_result,
    shared,
    shortened,
    size_of,
    without_media,
)

CALL = Call("c", "bmcp_a_x", {}, {})


def of(*parts: Part | str) -> Result:
    return Result(CALL, tuple(Text(part) if isinstance(part, str) else part for part in parts))


def texts(result: Result) -> list[str]:
    return [part.text if isinstance(part, Text) else part.mime_type for part in result.parts]


PIXEL = Media("image/png", "A" * 4000)


@pytest.mark.parametrize(
    ("result", "max_bytes", "max_parts", "shown"),
    [
        (of("a" * 300), 300, 1, ["a" * 300]),
        (of("a" * 300, "[The result was too large: 1 of 301 bytes were cut]"), 300, 1, None),
        (of("a" * 1000), 300, 1, ["a" * 300, "[The result was too large: 700 of 1000 bytes were cut]"]),
        (of("é" * 500), 301, 1, ["é" * 150, "[The result was too large: 700 of 1000 bytes were cut]"]),
        (of("a", "b", "c", "d"), 9, 2, ["a", "b", "[The result was too large: 2 of 4 bytes were cut]"]),
        (of(PIXEL, "a" * 300), 4000, 9, ["image/png", "[The result was too large: 300 of 4300 bytes were cut]"]),
        (of("abc", PIXEL), 300, 9, ["abc", PIXEL.note, "[The result was too large: 4000 of 4003 bytes were cut]"]),
        (of("\ud83e"), 1, 1, None),
    ],
)
def test_a_result_is_cut_with_a_note(result: Result, max_bytes: int, max_parts: int, shown: list[str] | None) -> None:
    assert texts(cut_result(result, max_bytes, max_parts)) == (texts(result) if shown is None else shown)


def test_the_largest_results_are_cut_and_small_ones_stay() -> None:
    cut = shared([of("x" * 1000), of("small"), of("y" * 600)], 405, 100, UNBOUNDED)
    assert texts(cut[1]) == ["small"]
    assert [texts(result)[0] for result in (cut[0], cut[2])] == ["x" * 200, "y" * 200]


def test_a_result_of_very_many_parts_is_cut() -> None:
    bounds = ResultBounds.of(Bounds(1_000_000, 10))
    (cut,) = bounds.within([of(*["a"] * 100_000)])
    assert len(cut.parts) == 11


@given(
    turns=st.lists(st.lists(st.lists(st.integers(0, 2000), min_size=1, max_size=9), max_size=8), max_size=12),
    max_bytes=st.integers(1, 2000),
    max_parts=st.integers(1, 4),
)
def test_a_turn_and_a_loop_have_bounds_of_their_own(
    turns: list[list[list[int]]], max_bytes: int, max_parts: int
) -> None:
    bounds, in_all = ResultBounds.of(Bounds(max_bytes, max_parts)), 0
    for turn in turns:
        results = [of(*("x" * size for size in parts)) for parts in turn]
        cut = bounds.within(results)
        assert len(cut) == len(results)
        of_turn = sum(map(size_of, cut)) - NOTE * len(cut)
        in_all += of_turn
        assert of_turn <= max_bytes * PER_TURN
        assert all(size_of(result) <= max_bytes + NOTE and len(result.parts) <= max_parts + 1 for result in cut)
    assert in_all <= max_bytes * PER_LOOP


@given(st.lists(st.lists(st.text(max_size=300), min_size=1), max_size=8))
def test_shortened_results_are_shorter(said: list[list[str]]) -> None:
    results = [of(*parts) for parts in said]
    cut = shortened(results)
    assert cut is None or sum(map(size_of, cut)) < sum(map(size_of, results))


def test_media_become_notes_for_a_provider_that_refuses_them() -> None:
    assert without_media([of("a")]) is None
    assert without_media([of("a", PIXEL)]) == (of("a", PIXEL.note),)
