"""Which regular expressions every provider takes."""

from __future__ import annotations

import pytest

from aibridge_addon.tools.patterns import is_portable


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "^a",
        "^[a-z0-9_.-]{1,64}$",
        r"^\d{4}-\d{2}$",
        "^(?:a|b)+?$",
        r"https:\/\/",
        r"[\[\]{}]",
        "[^,]*",
        "a{2,}",
        "x|y",
    ],
)
def test_plain_patterns_are_kept(pattern: str) -> None:
    assert is_portable(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\p{L}", r"[\p{Cc}]", "(?=a)", "(?!a)", "(?<=a)b", "(?<!a)b", "(?<n>a)", "(?P<n>a)", "(?i)a", r"(a)\1"),
        *(
            r"\u{1F600}",
            r"\u0041",
            r"\x41",
            r"\z",
            r"\A",
            r"\<",
            "[a[b]",
            "[]a]",
            "[^]a]",
            "[a&&b]",
            "{",
            "^{.*}$",
            "a{,2}",
        ),
        *("(", "[", "a**", "a{2000}", "a++", "x" * 1001, "\\", None, 7, ["a"]),
    ],
)
def test_patterns_that_only_some_engines_take_are_left_out(pattern: object) -> None:
    assert not is_portable(pattern)
