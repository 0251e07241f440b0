"""Reasoning whose following call the client does not know: it gets that call back, with its result.

OpenAI, "Reasoning models": an item of reasoning is sent back with the item that followed it, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from aibridge_addon.dialects.history import MAX_CALLS, MAX_ELEMENTS, Followers, Found, References
from aibridge_addon.dialects.turns import Call, Result, Text
from aibridge_addon.wire.json_object import JSONObject
from tests.support.dialects import HISTORIES

RESPONSES = HISTORIES["responses"]
Item = dict[str, Any]


def reasoning(number: int) -> Item:
    return {"type": "reasoning", "id": f"rs_{number}", "summary": [], "encrypted_content": f"enc_{number}"}


def call(name: str) -> Item:
    return {"type": "function_call", "call_id": name, "name": f"bmcp_t_{name}", "arguments": '{"n": 1.50}'}


def output(name: str) -> Item:
    return {"type": "function_call_output", "call_id": name, "output": f"says {name}"}


TEXT: Item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well."}]}
ASK: Item = {"role": "user", "content": "hello"}
ONE, TWO = reasoning(1), reasoning(2)


def followers(content: list[Item]) -> Mapping[str, Followers]:
    ours = [item for item in content if item.get("name", "").startswith("bmcp_")]
    results = [Result(Call(it["call_id"], it["name"], {}, it), (Text(f"says {it['call_id']}"),)) for it in ours]
    kept = dict(RESPONSES.followers(content, results))
    return {name: msgspec.json.decode(msgspec.json.encode(value), type=Followers) for name, value in kept.items()}


def followed(content: list[Item], given: list[Item]) -> list[Item] | None:
    """The input that goes upstream after a hidden turn of this content; None: as it came."""
    found = Found(followers=followers(content))
    body = JSONObject(msgspec.json.encode({"input": given, "store": False}))
    told = RESPONSES.read(body).completed(found) if found else None
    if told is None:
        return None
    assert RESPONSES.read(JSONObject(told)).completed(found) is None, "something is put in twice"
    return list(json.loads(told)["input"])


def test_a_call_of_ours_comes_back_behind_the_reasoning_that_it_followed() -> None:
    given = [ASK, ONE, TWO, TEXT, ASK]
    assert followed([ONE, call("x")], given) == [ASK, ONE, call("x"), output("x"), TWO, TEXT, ASK]


def test_calls_in_parallel_come_back_before_their_results() -> None:
    expected = [ONE, call("x"), call("y"), output("x"), output("y"), TEXT]
    assert followed([ONE, call("x"), call("y")], [ONE, TEXT]) == expected


def test_each_reasoning_of_a_turn_gets_its_own_call() -> None:
    expected = [ONE, call("x"), output("x"), TWO, call("y"), output("y"), TEXT]
    assert followed([ONE, call("x"), TWO, call("y")], [ONE, TWO, TEXT]) == expected


@pytest.mark.parametrize("lost", ["id", "encrypted_content"])
def test_a_client_may_send_back_only_one_of_its_names(lost: str) -> None:
    sent = {name: value for name, value in ONE.items() if name != lost}
    assert followed([ONE, call("x")], [sent, TEXT]) == [sent, call("x"), output("x"), TEXT]


def test_a_client_may_only_refer_to_it() -> None:
    reference = {"type": "item_reference", "id": "rs_1"}
    assert followed([ONE, call("x")], [reference, TEXT]) == [reference, call("x"), output("x"), TEXT]


@pytest.mark.parametrize(
    "content",
    [[ONE, TEXT, call("x")], [call("x")], [{"type": "reasoning"}, call("x")], [ONE, TEXT], [ONE], []],
)
def test_reasoning_that_was_followed_by_something_visible_needs_nothing(content: list[Item]) -> None:
    assert followed(content, [ONE, TEXT]) is None


@pytest.mark.parametrize(
    "given",
    [
        [ASK],
        [TWO, TEXT],
        [ONE, call("x"), output("x"), TEXT],
        [{"type": "item_reference", "id": "msg_1"}],
        [{"type": "reasoning", "id": 1}, {"type": "message", "content": "reasoning"}],
    ],
)
def test_an_input_that_does_not_lack_it_is_left_alone(given: list[Item]) -> None:
    assert followed([ONE, call("x")], given) is None


def test_reasoning_is_looked_for_under_all_its_names_from_the_end() -> None:
    many = [reasoning(number) for number in range(2 * MAX_ELEMENTS)]
    names = RESPONSES.read(JSONObject(msgspec.json.encode({"input": many}))).references().reasoning
    assert f"rs_{2 * MAX_ELEMENTS - 1}" in names and f"enc_{2 * MAX_ELEMENTS - 1}" in names
    assert "rs_0" not in names and len(names) <= MAX_CALLS


def test_chat_completions_have_no_such_rule() -> None:
    dialect = "chat_completions"
    assert not dict(HISTORIES[dialect].followers([ONE, call("x")], []))
    assert HISTORIES[dialect].read(JSONObject(b'{"messages":[]}')).references() == References()


def test_in_a_long_session_the_oldest_reasoning_has_its_call_too() -> None:
    later = [item for number in range(2, 900) for item in (reasoning(number), TEXT)]
    assert followed([ONE, call("x")], [ONE, *later]) == [ONE, call("x"), output("x"), *later]
    assert "enc_1" in RESPONSES.read(JSONObject(msgspec.json.encode({"input": [ONE, *later]}))).references().reasoning
