"""OpenAI's usage objects as compatible servers write them: what is cached, and what only the total counts."""

from __future__ import annotations

from typing import Any

import pytest

from aibridge_addon.dialects import CHAT_COMPLETIONS
from aibridge_addon.dialects.openai import read_usage, usage_of_turns

CHAT = ("prompt_tokens", "completion_tokens")
RESPONSES = ("input_tokens", "output_tokens")
CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int], bool]] = {
    # `i` is the input count, `o` the output count, `i_details` the details of the input
    "cached tokens are part of the prompt": (
        {"i": 100, "o": 10, "total_tokens": 110, "i_details": {"cached_tokens": 40}},
        (60, 10, 40, 0),
        True,
    ),
    "cached tokens beside the prompt": (
        {"i": 100, "o": 10, "total_tokens": 110, "i_details": {"cached_tokens": 5000}},
        (100, 10, 5000, 0),
        True,
    ),
    "cached tokens beside the prompt, and in the total": (
        {"i": 100, "o": 10, "total_tokens": 5110, "i_details": {"cached_tokens": 5000}},
        (100, 10, 5000, 0),
        True,
    ),
    "few cached tokens beside the prompt, and in the total": (
        {"i": 100, "o": 10, "total_tokens": 170, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 20},
        (100, 10, 40, 20),
        True,
    ),
    "more cached than read, without a total": (
        {"i": 100, "o": 10, "i_details": {"cached_tokens": 5000}},
        (100, 10, 5000, 0),
        False,
    ),
    "more cached than read, and another total": (
        {"i": 100, "o": 10, "total_tokens": 999, "i_details": {"cached_tokens": 5000}},
        (100, 10, 5000, 0),
        False,
    ),
    "more cached and written than read": (
        {"i": 100, "o": 10, "total_tokens": 110, "cached_tokens": 80, "cache_creation_input_tokens": 40},
        (0, 10, 80, 40),
        False,
    ),
    "reasoning beside the completion": (
        {"i": 20, "o": 7, "total_tokens": 127, "o_details": {"reasoning_tokens": 100}},
        (20, 107, 0, 0),
        True,
    ),
    "reasoning and cached tokens beside the counts": (
        {
            "i": 20,
            "o": 7,
            "total_tokens": 167,
            "i_details": {"cached_tokens": 40},
            "o_details": {"reasoning_tokens": 100},
        },
        (20, 107, 40, 0),
        True,
    ),
    "reasoning in the completion": (
        {"i": 20, "o": 107, "total_tokens": 127, "o_details": {"reasoning_tokens": 100}},
        (20, 107, 0, 0),
        True,
    ),
    "thinking in the total only": ({"i": 8, "o": 9, "total_tokens": 235}, (8, 227, 0, 0), True),
    "thinking in the total only, and no reasoning": (
        {"i": 8, "o": 9, "total_tokens": 235, "o_details": {"reasoning_tokens": 0}},
        (8, 227, 0, 0),
        True,
    ),
    "a total that reasoning does not explain": (
        {"i": 8, "o": 9, "total_tokens": 235, "o_details": {"reasoning_tokens": 4}},
        (8, 9, 0, 0),
        False,
    ),
    "a total that is too small says nothing": ({"i": 8, "o": 9, "total_tokens": 8}, (8, 9, 0, 0), True),
    "a total with tokens that are neither": ({"i": 8, "total_tokens": 20}, (8, 0, 0, 0), False),
    "no output": ({"i": 8, "total_tokens": 8}, (8, 0, 0, 0), True),
    "no output, and no total": ({"i": 8}, (8, 0, 0, 0), False),
    "no input, and no total": ({"o": 9}, (0, 9, 0, 0), False),
    "no input, confirmed by the total": ({"o": 9, "total_tokens": 9}, (0, 9, 0, 0), True),
    "an output of null": ({"i": 8, "o": None}, (8, 0, 0, 0), False),
    "zeros": ({"i": 0, "o": 0}, (0, 0, 0, 0), True),
    "a total alone": ({"total_tokens": 8}, (0, 0, 0, 0), False),
    "a total that cannot be read": ({"i": 8, "o": 9, "total_tokens": "NaN"}, (8, 9, 0, 0), True),
    "texts and floats": (
        {"i": "8", "o": 9.0, "total_tokens": "117.0", "o_details": {"reasoning_tokens": 100.0}},
        (8, 109, 0, 0),
        True,
    ),
    "numbers that are none": ({"i": "NaN", "o": -1, "total_tokens": 9}, (0, 0, 0, 0), False),
}


def named(usage: dict[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    long = {"i": names[0], "o": names[1], "i_details": f"{names[0]}_details", "o_details": f"{names[1]}_details"}
    return {long.get(name, name): value for name, value in usage.items()}


@pytest.mark.parametrize("names", [CHAT, RESPONSES], ids=["chat", "responses"])
@pytest.mark.parametrize(("usage", "expected", "complete"), CASES.values(), ids=list(CASES))
def test_a_usage_object_is_read(
    usage: dict[str, Any], expected: tuple[int, int, int, int], complete: bool, names: tuple[str, str]
) -> None:
    found = read_usage(named(usage, names), *names)
    counts = (
        found.input_tokens,
        found.output_tokens,
        found.cache_read_input_tokens,
        found.cache_write_input_tokens,
    )
    assert (counts, found.complete) == (expected, complete)


@pytest.mark.parametrize(("own", "other"), [(CHAT, RESPONSES), (RESPONSES, CHAT)])
def test_the_names_of_the_other_dialect_are_read(own: tuple[str, str], other: tuple[str, str]) -> None:
    usage: dict[str, Any] = {"i": 5, "o": 3, "i_details": {"cached_tokens": 2}}
    found = read_usage(named(usage, other), *own)
    assert (found.input_tokens, found.output_tokens, found.cache_read_input_tokens) == (3, 3, 2) and found.complete
    assert not read_usage({"total_tokens": 8}, *own).complete


FULL = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
ZEROS = dict.fromkeys(FULL, 0)


@pytest.mark.parametrize(
    "chunks",
    [
        [{"usage": None}, {"usage": FULL}],
        [{"usage": FULL}, {"usage": None}],
        [{"usage": ZEROS}, {"usage": FULL}],
        [{"usage": FULL}, {"usage": ZEROS}],
        [{"choices": [{"index": 0}, {"index": 1, "usage": FULL}]}],
        [{"x_groq": {"usage": FULL}}, {"usage": {}}],
    ],
)
def test_a_usage_that_says_nothing_replaces_none(chunks: list[dict[str, Any]]) -> None:
    reader = CHAT_COMPLETIONS.answer_reader()
    for chunk in chunks:
        reader.read("", {"id": "c-1", **chunk})
    found = reader.reading.usage
    assert found is not None and (found.input_tokens, found.output_tokens) == (7, 5)


@pytest.mark.parametrize("names", [CHAT, RESPONSES], ids=["chat", "responses"])
def test_what_only_the_total_counts_is_in_the_total_of_all_turns(names: tuple[str, str]) -> None:
    turns = [
        named(usage, names)
        for usage in (
            {"i": 8, "o": 9, "total_tokens": 235},
            {"i": 30, "o": 7, "total_tokens": 137, "o_details": {"reasoning_tokens": 100}},
        )
    ]
    usage = usage_of_turns(turns, *names)
    assert (usage[names[0]], usage[names[1]], usage["total_tokens"]) == (8, 16, 8 + 16 + 218 + 100)
