"""Requests after a mixed turn, whatever they look like: nothing fails, nothing comes twice, nothing else changes.

`make soak` generates many more.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects.history import KeptTurn
from aibridge_addon.dialects.turns import Call, Result, Text
from aibridge_addon.wire.json_object import JSONObject, decode
from tests.dialects.test_history import placed
from tests.support.dialects import ALL_HISTORIES
from tests.support.soak import MANY, TIMEOUT

DIALECTS = list(ALL_HISTORIES)
CLIENTS, OURS = ("a", "b", "c", "d"), ("w", "x", "y", "z")
MARK = "bmcp_t_x"


def kept(dialect: str, client_calls: list[str], ours: list[tuple[str, str | None]]) -> KeptTurn:
    def item(call_id: str) -> dict[str, Any]:
        if dialect == "converse":
            return {"toolUse": {"toolUseId": call_id, "name": MARK, "input": {}}}
        names = {"messages": "id", "chat_completions": "id", "responses": "call_id"}
        kinds = {"messages": "tool_use", "chat_completions": "function", "responses": "function_call"}
        return {"type": kinds[dialect], names[dialect]: call_id, "name": MARK}

    results = [Result(Call(name, MARK, {}, item(name), anchor), (Text(MARK),)) for name, anchor in ours]
    value = ALL_HISTORIES[dialect].mixed_turn(client_calls, results)
    return msgspec.json.decode(msgspec.json.encode(value), type=KeptTurn)


@st.composite
def kept_turns(draw: st.DrawFn, dialect: str) -> list[KeptTurn]:
    """Up to two turns, with no call in both."""
    turns = []
    for clients, ours in ((CLIENTS[:2], OURS[:2]), (CLIENTS[2:], OURS[2:])):
        client_calls = draw(st.lists(st.sampled_from(clients), min_size=1, unique=True))
        anchors = st.none() | st.sampled_from(client_calls)
        names = draw(st.lists(st.sampled_from(ours), min_size=1, unique=True))
        turns.append(kept(dialect, client_calls, [(name, draw(anchors)) for name in names]))
    return turns[: draw(st.integers(0, 2))]


# --- bodies of any shape ----------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *(*CLIENTS, *OURS, "r1", "user", "assistant", "tool", "continue", "create", "tool_use", "tool_result"),
        *("function_call", "function_call_output", "custom_tool_call", "item_reference", "server_tool_use", ""),
    ]
)
NAMES = st.sampled_from(
    [
        *("messages", "input", "role", "content", "tool_calls", "type", "id", "call_id", "tool_use_id"),
        *("toolUse", "toolResult", "toolUseId", "reasoningContent", "reasoningText", "signature", "redactedContent"),
        *("tool_call_id", "thread", "diagnostics", "previous_message_id", "previous_response_id", "conversation"),
    ]
)
LEAVES = WORDS | st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=40,
)
BODIES = st.dictionaries(NAMES, VALUES, max_size=6)


@TIMEOUT
@pytest.mark.parametrize("dialect", DIALECTS)
@MANY
@given(data=st.data())
def test_no_request_makes_it_fail_or_is_completed_twice(dialect: str, data: st.DataObject) -> None:
    body, what = data.draw(BODIES), data.draw(kept_turns(dialect))
    check(dialect, json.dumps(body, allow_nan=False) if finite(body) else "{}", what)


def finite(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def completed(dialect: str, text: bytes, turns: list[KeptTurn]) -> bytes | None:
    history = ALL_HISTORIES[dialect].read(JSONObject(text))
    references = history.references()
    told = history.completed(replace(placed(history, turns), aliases={"r1": "r2"}))
    assert told is None or references, "something is changed that nothing refers to"
    return told


def check(dialect: str, text: str, turns: list[KeptTurn]) -> str | None:
    told = completed(dialect, text.encode(), turns)
    assert told == completed(dialect, text.encode(), turns), "not deterministic"
    if told is None:
        return None
    assert completed(dialect, told, turns) is None, "something is put in twice"
    assert decode(told) != decode(text.encode())
    return told.decode()


# --- histories --------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from(["1.50", "1e2", "-0.0", "123456789012345678901234567890", '"\\u00e9"', "[ 1 ,2 ]"])


@st.composite
def history(draw: st.DrawFn, dialect: str) -> str:
    """A conversation, in bytes that no encoder of ours would write."""
    elements: list[str] = []
    for clients in (CLIENTS[:2], CLIENTS[2:]):
        own = draw(st.lists(st.sampled_from(clients), unique=True))
        extra = draw(NUMBERS)
        if dialect == "messages":
            blocks = [f'{{ "type":"tool_use","id":"{name}","input":{{"n":{extra}}}}}' for name in own]
            answers = [f'{{"type":"tool_result" ,"tool_use_id":"{name}","content":{extra}}}' for name in own]
            blocks.insert(draw(st.integers(0, len(blocks))), f'{{"type":"text","text":"t","n":{extra}}}')
            elements += [f'{{"role":"user","n":{extra},"content":"t"}}', message("assistant", "content", blocks)]
            elements.append(message("user", "content", [*answers, f'{{"type":"text","text":"u","n":{extra}}}']))
        elif dialect == "converse":
            blocks = [f'{{ "toolUse":{{"toolUseId":"{name}","name":"R","input":{{"n":{extra}}}}}}}' for name in own]
            answers = [f'{{"toolResult" :{{"toolUseId":"{name}","content":{extra}}}}}' for name in own]
            blocks.insert(draw(st.integers(0, len(blocks))), f'{{"text":"t","n":{extra}}}')
            elements += [f'{{"role":"user","n":{extra},"content":[]}}', message("assistant", "content", blocks)]
            elements.append(message("user", "content", [*answers, f'{{"text":"u","n":{extra}}}']))
        elif dialect == "chat_completions":
            calls = [f'{{"id":"{name}" ,"function":{{"n":{extra}}}}}' for name in own]
            elements += [f'{{"role":"user","n":{extra}}}', message("assistant", "tool_calls", calls)]
            elements += [f'{{"role":"tool","tool_call_id":"{name}","n":{extra}}}' for name in own]
        else:
            items = [f'{{"type":"function_call","call_id":"{name}","n":{extra}}}' for name in own]
            outputs = [f'{{"type":"function_call_output", "call_id":"{name}","n":{extra}}}' for name in own]
            paired = [text for pair in zip(items, outputs, strict=True) for text in pair]
            elements += [f'{{"type":"reasoning","n":{extra}}}', *draw(st.sampled_from([items + outputs, paired]))]
    elements.append(f'{{"role":"user","content":[],"n":{draw(NUMBERS)}}}')
    member = "input" if dialect == "responses" else "messages"
    return f'{{"before":{draw(NUMBERS)},"{member}":[{",".join(elements)}],"after":{draw(NUMBERS)}}}'


def message(role: str, member: str, parts: list[str]) -> str:
    return f'{{"role":"{role}","n":1.0,"{member}":[{",".join(parts)}]}}'


def bare(text: str) -> str:
    return "".join(text.split()).replace(",", "")


@TIMEOUT
@pytest.mark.parametrize("dialect", DIALECTS)
@MANY
@given(data=st.data())
def test_a_history_is_verbatim_but_for_what_is_put_in(dialect: str, data: st.DataObject) -> None:
    text, what = data.draw(history(dialect)), data.draw(kept_turns(dialect))
    told = check(dialect, text, what)
    if told is None:
        return
    for turn in what:
        present = [kept for kept in turn.kept if bytes(kept.call).decode() in told]
        assert present in ([], list(turn.kept)), "a turn is put in whole or not at all"
        for kept in present:
            for piece in (bytes(kept.call).decode(), bytes(kept.result).decode()):
                assert told.count(piece) == 1
                told = told.replace(piece, "")
    assert MARK not in told
    assert bare(told) == bare(text)


@TIMEOUT
@pytest.mark.parametrize("dialect", DIALECTS)
@MANY
@given(data=st.data())
def test_every_call_comes_before_its_result(dialect: str, data: st.DataObject) -> None:
    text, what = data.draw(history(dialect)), data.draw(kept_turns(dialect))
    told = check(dialect, text, what) or ""
    for kept in (kept for turn in what for kept in turn.kept):
        call, result = told.find(bytes(kept.call).decode()), told.find(bytes(kept.result).decode())
        assert (call < 0) == (result < 0)
        assert call <= result
