"""Thinking whose following call the client does not know: the assistant message is split where that turn ended.

Anthropic, "Extended thinking with tool use": a turn's thinking comes back with the turn's calls, and unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects.history import Followers, KeptTurn
from aibridge_addon.dialects.turns import Call, Result, Text
from aibridge_addon.wire.json_object import JSONObject
from tests.dialects.test_history import placed
from tests.support.dialects import HISTORIES
from tests.support.soak import MANY, TIMEOUT

MESSAGES = HISTORIES["messages"]
Block = dict[str, Any]


def thinking(number: int) -> Block:
    return {"type": "thinking", "thinking": "Hm.", "signature": f"sig_{number}"}


def use(name: str, tool: str = "bmcp_t_x") -> Block:
    return {"type": "tool_use", "id": name, "name": tool, "input": {"n": 1}}


def says(name: str) -> Block:
    return {"type": "tool_result", "tool_use_id": name, "content": [{"type": "text", "text": f"says {name}"}]}


def assistant(*blocks: Block) -> Block:
    return {"role": "assistant", "content": list(blocks)}


def user(*blocks: Block) -> Block:
    return {"role": "user", "content": list(blocks)}


ONE, TWO, THREE = thinking(1), thinking(2), thinking(3)
REDACTED: Block = {"type": "redacted_thinking", "data": "sealed"}
TEXT: Block = {"type": "text", "text": "Well."}
ASK: Block = {"role": "user", "content": "hello"}
READ, READ_SAYS = use("a", "Read"), {"type": "tool_result", "tool_use_id": "a", "content": "1"}


def results(content: list[Block]) -> list[Result]:
    ours = [block for block in content if block.get("name", "").startswith("bmcp_")]
    return [Result(Call(block["id"], block["name"], {}, block), (Text(f"says {block['id']}"),)) for block in ours]


def followers(*hidden: list[Block]) -> Mapping[str, Followers]:
    kept = {name: value for content in hidden for name, value in MESSAGES.followers(content, results(content))}
    return {name: msgspec.json.decode(msgspec.json.encode(value), type=Followers) for name, value in kept.items()}


def mixed(client_call: str, *ours: str) -> KeptTurn:
    made = [Result(Call(name, "bmcp_t_x", {}, use(name), None), (Text(f"says {name}"),)) for name in ours]
    return msgspec.json.decode(msgspec.json.encode(MESSAGES.mixed_turn([client_call], made)), type=KeptTurn)


def completed(body: bytes, turns: list[KeptTurn], followers: Mapping[str, Followers]) -> bytes | None:
    history = MESSAGES.read(JSONObject(body))
    told = history.completed(replace(placed(history, turns), followers=followers))
    assert told is None or history.references(), "something is changed that nothing refers to"
    return told


def resumed(
    sent: list[Block], turns: list[KeptTurn], followers: Mapping[str, Followers], **members: Any
) -> list[Block] | None:
    """The messages that go upstream; None: as they came."""
    told = completed(msgspec.json.encode({"messages": sent} | members), turns, followers)
    if told is None:
        return None
    assert completed(told, turns, followers) is None, "something is put in twice"
    return list(json.loads(told)["messages"])


def followed(hidden: list[list[Block]], sent: list[Block], **members: Any) -> list[Block] | None:
    return resumed(sent, [], followers(*hidden), **members)


def test_the_message_is_split_where_the_hidden_turn_ended() -> None:
    sent = [ASK, assistant(ONE, TWO, READ), user(READ_SAYS)]
    expected = [ASK, assistant(ONE, use("x")), user(says("x")), assistant(TWO, READ), user(READ_SAYS)]
    assert followed([[ONE, use("x")]], sent) == expected


def test_what_the_turn_said_after_its_thinking_stays_before_its_calls() -> None:
    sent = [ASK, assistant(ONE, TEXT, TEXT, TEXT), ASK]
    expected = [ASK, assistant(ONE, TEXT, TEXT, use("x"), use("y")), user(says("x"), says("y")), assistant(TEXT), ASK]
    assert followed([[ONE, TEXT, use("x"), TEXT, use("y")]], sent) == expected


def test_several_hidden_turns_are_each_put_in() -> None:
    sent = [ASK, assistant(ONE, TEXT, REDACTED, THREE, TEXT), ASK]
    told = followed([[ONE, TEXT, use("x")], [REDACTED, use("y")]], sent)
    assert told == [
        *(ASK, assistant(ONE, TEXT, use("x")), user(says("x"))),
        *(assistant(REDACTED, use("y")), user(says("y"))),
        *(assistant(THREE, TEXT), ASK),
    ]


def test_a_turn_of_which_the_client_left_something_out_ends_before_the_next_one() -> None:
    for then in (TWO, READ):
        sent = [ASK, assistant(ONE, then, TEXT)]
        assert followed([[ONE, TEXT, TEXT, use("x")]], sent) == [
            *(ASK, assistant(ONE, use("x")), user(says("x")), assistant(then, TEXT)),
        ]


def test_a_message_that_ends_with_the_hidden_turn_leaves_no_empty_one() -> None:
    assert followed([[ONE, use("x")]], [assistant(ONE), ASK]) == [assistant(ONE, use("x")), user(says("x")), ASK]


def test_a_mixed_turn_after_a_hidden_one_is_completed_too() -> None:
    sent = [ASK, assistant(ONE, TWO, READ), user(READ_SAYS)]
    assert resumed(sent, [mixed("a", "y")], followers([ONE, use("x")])) == [
        *(ASK, assistant(ONE, use("x")), user(says("x"))),
        *(assistant(TWO, READ, use("y")), user(says("y"), READ_SAYS)),
    ]


@pytest.mark.parametrize("content", [[use("x")], [TEXT, use("x")], [{"type": "thinking"}, use("x")], [ONE, TEXT], []])
def test_a_turn_without_thinking_or_calls_leaves_nothing(content: list[Block]) -> None:
    assert not followers(content)


@pytest.mark.parametrize(
    "sent",
    [
        [ASK, assistant(TWO, TEXT)],
        [ASK, assistant(ONE, use("x")), user(says("x"))],
        [ASK, assistant(READ, ONE), user(READ_SAYS)],
        [user(ONE)],
        [{"role": "assistant", "content": "thinking"}],
        [assistant({"type": "thinking", "signature": 1}, {"type": "image", "data": {"thinking": "sig_1"}})],
    ],
)
def test_messages_that_do_not_lack_it_are_left_alone(sent: list[Block]) -> None:
    assert followed([[ONE, use("x")]], sent) is None


def test_a_thread_that_is_continued_has_the_calls() -> None:
    thread = {"type": "continue", "previous_message_id": "msg_1"}
    assert followed([[ONE, use("x")]], [assistant(ONE, TWO), ASK], thread=thread) is None


def test_a_turn_that_has_its_call_is_not_split_at_the_thinking_before_it() -> None:
    hidden = followers([REDACTED, use("y")], [ONE, use("x")])
    assert resumed([assistant(REDACTED, ONE, use("y"))], [], hidden) is None


def test_between_a_call_of_the_clients_and_its_result_nothing_is_put() -> None:
    """An assistant's message may go on in a further one."""
    hidden = followers([ONE, use("x")])
    for run in ([assistant(READ), assistant(ONE, TEXT)], [assistant(READ), assistant(TEXT), assistant(ONE)]):
        assert resumed([ASK, *run, user(READ_SAYS), ASK], [], hidden) is None
        assert resumed(run, [], hidden) is None


# --- whatever the turns were ------------------------------------------------------------------------------------


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[list[Block]], list[Block], KeptTurn | None]:
    """Hidden turns, what the client has of the answer, and the turn of calls of both that it may end in."""
    hidden: list[list[Block]] = []
    for number in range(draw(st.integers(1, 4))):
        blocks = [thinking(number)] if draw(st.booleans()) else []
        blocks += draw(st.lists(st.just(TEXT), max_size=2))
        calls = [use(f"h{number}_{n}") for n in range(draw(st.integers(1, 2)))]
        hidden.append([*blocks, *calls, *draw(st.lists(st.just(TEXT), max_size=1))])
    visible = [block for content in hidden for block in content if block["type"] != "tool_use"]
    ends = draw(st.sampled_from(["text", "call", "mixed"]))
    visible += [thinking(9), *([TEXT] if ends == "text" else [READ])]
    left_out = draw(st.sets(st.integers(0, len(visible) - 2), max_size=2))
    shown = [block for place, block in enumerate(visible) if place not in left_out]
    return hidden, shown, mixed("a", "m1", "m2") if ends == "mixed" else None


@TIMEOUT
@MANY
@given(answers())
def test_all_is_verbatim_but_for_calls_and_each_is_answered_in_the_next_message(
    answer: tuple[list[list[Block]], list[Block], KeptTurn | None],
) -> None:
    hidden, shown, turn = answer
    sent = [ASK, assistant(*shown), user(READ_SAYS) if READ in shown else ASK, assistant(TEXT), ASK]
    turns = [turn] if turn is not None else []
    told = resumed(sent, turns, followers(*hidden)) or sent
    assert told == (resumed(sent, turns, followers(*hidden)) or sent), "not deterministic"

    visible = [block for message in told if message["role"] == "assistant" for block in message["content"]]
    assert [block for block in visible if block.get("name") != "bmcp_t_x"] == [*shown, TEXT]
    for message, after in zip(told, [*told[1:], ASK], strict=True):
        called = [block["id"] for block in message["content"] if block in visible and block["type"] == "tool_use"]
        if called:
            answered = [block["tool_use_id"] for block in after["content"] if block["type"] == "tool_result"]
            assert after["role"] == "user" and sorted(called) == sorted(answered)
    known = [block["signature"] for block in shown if block["type"] == "thinking"]
    expected = [
        block["id"]
        for content in hidden
        if content[0].get("signature") in known
        for block in content[1:]
        if block["type"] == "tool_use"
    ]
    put_in = [block["id"] for block in visible if block.get("name") == "bmcp_t_x"]
    assert put_in == expected + (["m1", "m2"] if turn is not None else [])


BLOCKS = st.sampled_from([ONE, TWO, REDACTED, TEXT, READ, use("x"), use("y"), says("x"), says("m1"), READ_SAYS])
MESSAGE = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "system"]),
    st.lists(BLOCKS, max_size=5) | st.just("thinking"),
)


@TIMEOUT
@MANY
@given(st.lists(MESSAGE, max_size=5), st.integers(0, 3), st.booleans())
def test_no_history_is_completed_twice_or_loses_anything(sent: list[Block], visible: int, with_mixed: bool) -> None:
    hidden = [ONE, *[TEXT] * visible, use("x")], [REDACTED, use("y")]
    turns = [mixed("a", "m1")] if with_mixed else []
    told = resumed(sent, turns, followers(*hidden))  # which holds that nothing is put in twice
    if told is not None:
        remaining = iter(block for message in told for block in spoken(message))
        assert all(block in remaining for message in sent for block in spoken(message))


def spoken(message: Block) -> list[Block]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
