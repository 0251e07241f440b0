"""A history that more than one kept turn belongs to: each of our calls is put in once.

One client can have the same turn kept under two ids, and turns that share a call. Providers refuse a history in which
an id of a call stands twice.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aibridge_addon.dialects.history import KeptTurn
from tests.dialects import test_history as histories

TURNS: dict[str, KeptTurn] = {
    "messages": histories.MIXED,
    "chat_completions": histories.CHAT_MIXED,
    "responses": histories.RESPONSES_MIXED,
}
CHAT = histories.talk(
    histories.HELLO, histories.calls(histories.CHAT_A, histories.CHAT_B), histories.tool("b"), histories.tool("a")
)
BEFORE: list[tuple[str, str]] = [
    *[("messages", before) for before, _ in histories.MESSAGES_CASES.values()],
    ("chat_completions", CHAT),
    *[
        ("responses", before)
        for name, (before, _) in histories.RESPONSES_CASES.items()
        if name != "an output directly after each call"  # what stands after an output may be another turn
    ],
]

AGAIN: dict[str, Callable[[KeptTurn], KeptTurn]] = {
    "the same turn": lambda turn: turn,
    "the client's calls in another order": lambda turn: KeptTurn(turn.client_calls[::-1], turn.kept),
    "a turn that shares a call": lambda turn: KeptTurn(turn.client_calls, turn.kept[:1]),
}


@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize(("dialect", "before"), BEFORE)
def test_a_call_that_two_kept_turns_have_is_put_in_once(dialect: str, before: str, again: str) -> None:
    turn = TURNS[dialect]
    once = histories.resumed(dialect, before, turn)
    assert once is not None
    assert histories.resumed(dialect, before, turn, AGAIN[again](turn)) == once
