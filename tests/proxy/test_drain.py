"""What a stop says about the requests that it waits for."""

from __future__ import annotations

import pytest

from aibridge_addon.proxy.drain import MAX_NAMED, summary


@pytest.mark.parametrize(
    ("descriptions", "expected"),
    [
        ([], "0"),
        (["a/m for ada"], "1 (a/m for ada)"),
        (["a/m for ada", "b/n for eve", "a/m for ada"], "3 (a/m for ada (2), b/n for eve)"),
    ],
)
def test_requests_are_counted_and_each_is_named_once(descriptions: list[str], expected: str) -> None:
    assert summary(descriptions) == expected


def test_many_requests_are_named_in_part() -> None:
    named = summary([f"a/m for {number}" for number in range(MAX_NAMED + 3)])
    assert named.startswith(f"{MAX_NAMED + 3} (a/m for 0, ") and named.endswith(", 3 more)")


def test_names_that_clients_choose_stay_short_text_in_one_line() -> None:
    hostile = "a/\x1b[2J\n\u202em for " + "ada" * 1000
    found = summary([hostile])
    assert found.isprintable() and len(found) < 200 and "\\x1b[2J" in found
