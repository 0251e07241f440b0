"""Requests after a mixed turn, or after an answer of several turns: exactly what goes to the provider."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest

from aibridge_addon.dialects.history import MAX_CALLS, Found, KeptTurn, References, RequestHistory
from aibridge_addon.dialects.place import Place
from aibridge_addon.dialects.turns import Call, Result, Text
from aibridge_addon.wire.json_object import JSONObject
from tests.support.dialects import HISTORIES

MESSAGES, CHAT, RESPONSES = HISTORIES["messages"], HISTORIES["chat_completions"], HISTORIES["responses"]


def item(dialect: str, call_id: str) -> dict[str, Any]:
    match dialect:
        case "messages":
            return {"type": "tool_use", "id": call_id, "name": "bmcp_t_x", "input": {"n": 1}}
        case "responses":
            return {"type": "function_call", "call_id": call_id, "name": "bmcp_t_x", "arguments": "{}"}
    return {"id": call_id, "type": "function", "function": {"name": "bmcp_t_x", "arguments": "{}"}}


def kept(dialect: str, client_calls: Sequence[str], *ours: tuple[str, str | None]) -> KeptTurn:
    """A mixed turn: ids of the client's calls; of ours, each with its anchor."""
    results = [
        Result(Call(call_id, "bmcp_t_x", {}, item(dialect, call_id), anchor), (Text(f"says {call_id}"),))
        for call_id, anchor in ours
    ]
    value = HISTORIES[dialect].mixed_turn(client_calls, results)
    return msgspec.json.decode(msgspec.json.encode(value), type=KeptTurn)


def placed(history: RequestHistory, turns: Sequence[KeptTurn]) -> Found:
    """Each turn at the places of its first call that the history has, or at the places that are references."""
    places = history.references().calls
    found: dict[Place, KeptTurn] = {}
    for turn in turns:
        own = next(([p for p in places if p.call_id == name] for name in turn.client_calls if name in ids(places)), [])
        found = dict.fromkeys(own or [p for p in places if p.after[0] == "item"], turn) | found
    return Found(turns=dict(sorted(found.items())))


def ids(places: Iterable[Place]) -> set[str]:
    return {place.call_id for place in places}


def resumed(dialect: str, body: str, *turns: KeptTurn) -> str | None:
    history = HISTORIES[dialect].read(JSONObject(body.encode()))
    told = history.completed(placed(history, turns))
    if told is not None:
        after = HISTORIES[dialect].read(JSONObject(told))
        again = after.completed(placed(after, turns))
        assert again is None, "something is put in twice"
    return None if told is None else told.decode()


# --- Messages ---------------------------------------------------------------------------------------------------

A = '{ "type":"tool_use","id":"a","name":"Read","input":{"big": 12345678901234567890123, "f":1.50} }'
B = '{"type":"tool_use","id":"b","name":"Read","input":{}}'
A_SAYS = '{"type":"tool_result", "tool_use_id":"a","content":"\\u00e9"}'
B_SAYS = '{"type":"tool_result","tool_use_id":"b","content":[]}'
TEXT = '{"type":"text","text":"let me see"}'


def use(call_id: str) -> str:
    return f'{{"type":"tool_use","id":"{call_id}","name":"bmcp_t_x","input":{{"n":1}}}}'


def says(call_id: str) -> str:
    return f'{{"type":"tool_result","tool_use_id":"{call_id}","content":[{{"type":"text","text":"says {call_id}"}}]}}'


def talk(*messages: str, more: str = "") -> str:
    return f'{{"model":"m","messages":[{",".join(messages)}]{more}}}'


def assistant(*blocks: str) -> str:
    return f'{{"role":"assistant","content":[{",".join(blocks)}]}}'


def user(*blocks: str) -> str:
    return f'{{"role":"user","content":[{",".join(blocks)}]}}'


HELLO = '{"role": "user", "content": "hello"}'
AFTERWARDS = ('{"role":"assistant","content":"done"}', '{"role":"user","content":"thanks"}')
MIXED = kept("messages", ["a", "b"], ("x", "a"), ("y", "b"), ("z", None))

MESSAGES_CASES = {
    "each call before the client's call that it stood before": (
        talk(HELLO, assistant(TEXT, A, B), user(A_SAYS, B_SAYS)),
        talk(
            HELLO,
            assistant(TEXT, use("x"), A, use("y"), B, use("z")),
            user(says("x"), says("y"), says("z"), A_SAYS, B_SAYS),
        ),
    ),
    "a history that has gone on": (
        talk(HELLO, assistant(A, B), user(B_SAYS, A_SAYS, TEXT), *AFTERWARDS),
        talk(
            HELLO,
            assistant(use("x"), A, use("y"), B, use("z")),
            user(says("x"), says("y"), says("z"), B_SAYS, A_SAYS, TEXT),
            *AFTERWARDS,
        ),
    ),
    "one call of the client's is gone, and a text has come after the other one": (
        talk(HELLO, assistant(B, TEXT), user(B_SAYS)),
        talk(
            HELLO,
            assistant(use("y"), B, use("x"), use("z"), TEXT),
            user(says("x"), says("y"), says("z"), B_SAYS),
        ),
    ),
    "an answer that is a text": (
        talk(HELLO, assistant(A, B), '{"content":"st\\u00f6p","role":"user"}'),
        talk(
            HELLO,
            assistant(use("x"), A, use("y"), B, use("z")),
            '{"content":['
            + ",".join([says("x"), says("y"), says("z"), '{"type":"text","text":"st\\u00f6p"}'])
            + '],"role":"user"}',
        ),
    ),
    "an answer without the client's results": (
        talk(HELLO, assistant(A, B), user(TEXT)),
        talk(
            HELLO,
            assistant(use("x"), A, use("y"), B, use("z")),
            user(says("x"), says("y"), says("z"), TEXT),
        ),
    ),
    "an answer in several messages": (
        talk(HELLO, assistant(A, B), user(TEXT), user(A_SAYS, B_SAYS)),
        talk(
            HELLO,
            assistant(use("x"), A, use("y"), B, use("z")),
            user(TEXT),
            user(says("x"), says("y"), says("z"), A_SAYS, B_SAYS),
        ),
    ),
    "calls in a message each": (
        talk(HELLO, assistant(A), assistant(B), user(A_SAYS, B_SAYS)),
        talk(
            HELLO,
            assistant(use("x"), A),
            assistant(use("y"), B, use("z")),
            user(says("x"), says("y"), says("z"), A_SAYS, B_SAYS),
        ),
    ),
    "results in a thread that goes on, whose calls the server has": (
        talk(user(A_SAYS, B_SAYS), more=',"thread":{"type":"continue","previous_message_id":"msg_1"}'),
        talk(
            user(says("x"), says("y"), says("z"), A_SAYS, B_SAYS),
            more=',"thread":{"type":"continue","previous_message_id":"msg_1"}',
        ),
    ),
    "a thread that is created with its history": (
        talk(HELLO, assistant(A, B), user(A_SAYS, B_SAYS), more=',"thread":{"type":"create"}'),
        talk(
            HELLO,
            assistant(use("x"), A, use("y"), B, use("z")),
            user(says("x"), says("y"), says("z"), A_SAYS, B_SAYS),
            more=',"thread":{"type":"create"}',
        ),
    ),
}
MESSAGES_LEFT_ALONE = {
    "calls that are not answered yet": talk(HELLO, assistant(A, B)),
    "calls that are followed by something else": talk(HELLO, assistant(A, B), '{"role":"system","content":"s"}'),
    "results without calls": talk(HELLO, user(A_SAYS, B_SAYS)),
    "another conversation": talk(HELLO, assistant(TEXT), user(TEXT)),
    "a new thread without history": talk(user(A_SAYS), more=',"thread":{"type":"create"}'),
    "messages that are none": '{"messages":"a tool_use"}',
    "calls of a person": talk(user(A, B), user(A_SAYS)),
}


@pytest.mark.parametrize("name", MESSAGES_CASES)
def test_messages_get_our_calls_and_results_where_they_belong(name: str) -> None:
    before, after = MESSAGES_CASES[name]
    assert resumed("messages", before, MIXED) == after


@pytest.mark.parametrize("name", MESSAGES_LEFT_ALONE)
def test_messages_that_our_calls_do_not_belong_to_are_left_alone(name: str) -> None:
    assert resumed("messages", MESSAGES_LEFT_ALONE[name], MIXED) is None


@pytest.mark.parametrize(
    ("blocks", "answer"),
    [((use("x"), A, use("y"), B), (A_SAYS,)), ((A, B), (says("x"), says("y"), A_SAYS))],
    ids=["as a call", "as a result"],
)
def test_what_the_client_sends_itself_is_not_put_in(blocks: Sequence[str], answer: Sequence[str]) -> None:
    turn = kept("messages", ["a", "b"], ("x", "a"), ("y", "b"))
    assert resumed("messages", talk(HELLO, assistant(*blocks), user(*answer)), turn) is None


def test_several_mixed_turns_of_a_history_are_each_completed() -> None:
    first, second = kept("messages", ["a"], ("x", "a")), kept("messages", ["b"], ("y", None))
    before = talk(HELLO, assistant(A), user(A_SAYS), assistant(B), user(B_SAYS))
    after = talk(
        HELLO, assistant(use("x"), A), user(says("x"), A_SAYS), assistant(B, use("y")), user(says("y"), B_SAYS)
    )
    assert resumed("messages", before, first, second) == resumed("messages", before, second, first) == after


@pytest.mark.parametrize(
    ("member", "before", "after"),
    [
        (
            "thread",
            '{"thread":{ "type":"continue" , "previous_message_id":"msg_1","n":1.0},"messages":[ 1 ]}',
            '{"thread":{"type":"continue","previous_message_id":"msg_9","n":1.0},"messages":[ 1 ]}',
        ),
        ("diagnostics", '{"diagnostics":{"previous_message_id":"msg_1"},"thread":{"type":"continue"},"f":1.50}', None),
    ],
)
def test_messages_that_name_the_answer_name_its_last_turn(member: str, before: str, after: str | None) -> None:
    body = JSONObject(before.encode())
    assert MESSAGES.read(body).references().ids == {"msg_1"}, member
    told = MESSAGES.read(body).completed(Found({"msg_1": "msg_9"}))
    assert told == (after or before.replace("msg_1", "msg_9")).encode()
    assert MESSAGES.read(JSONObject(told)).completed(Found({"msg_1": "msg_9"})) is None


# --- Chat Completions -------------------------------------------------------------------------------------------


def call(call_id: str) -> str:
    return f'{{"id":"{call_id}","type":"function","function":{{"name":"bmcp_t_x","arguments":"{{}}"}}}}'


def calls(*entries: str) -> str:
    return f'{{"role":"assistant", "content":null,"tool_calls":[{",".join(entries)}],"reasoning":1.50}}'


def called(*entries: str) -> str:
    return calls(*entries).replace(", ", ",")


def tool(call_id: str) -> str:
    return f'{{"role":"tool","tool_call_id":"{call_id}","content":"says {call_id}"}}'


CHAT_A, CHAT_B = '{ "id":"a","type":"function","function":{"name":"Read"} }', '{"id":"b","type":"custom"}'
CHAT_MIXED = kept("chat_completions", ["a", "b"], ("x", "a"), ("y", "b"), ("z", None))
ALL_CALLED = called(call("x"), CHAT_A, call("y"), CHAT_B, call("z"))


@pytest.mark.parametrize("more", [(), AFTERWARDS], ids=["the next request", "a later one"])
def test_a_chat_gets_our_calls_and_results_where_they_belong(more: Sequence[str]) -> None:
    before = talk(HELLO, calls(CHAT_A, CHAT_B), tool("b"), tool("a"), *more)
    after = talk(HELLO, ALL_CALLED, tool("x"), tool("y"), tool("z"), tool("b"), tool("a"), *more)
    assert resumed("chat_completions", before, CHAT_MIXED) == after


def test_a_chat_that_has_lost_a_call_gets_ours_after_the_last_one() -> None:
    before = talk(HELLO, calls(CHAT_A), tool("a"))
    after = talk(HELLO, called(call("x"), CHAT_A, call("y"), call("z")), *map(tool, "xyza"))
    assert resumed("chat_completions", before, CHAT_MIXED) == after


@pytest.mark.parametrize(
    "body",
    [
        talk(HELLO, calls(CHAT_A, CHAT_B)),
        talk(HELLO, tool("a"), tool("b")),
        talk(HELLO, calls(call("x"), CHAT_A, call("y"), CHAT_B, call("z")), tool("a")),
        talk(HELLO, calls(CHAT_A, CHAT_B), *map(tool, "xyzab")),
        talk('{"role":"user","tool_calls":[{"id":"a"}]}', HELLO),
        talk('{"role":"assistant","tool_calls":{"id":"a"}}', HELLO),
    ],
)
def test_a_chat_that_our_calls_do_not_belong_to_is_left_alone(body: str) -> None:
    assert resumed("chat_completions", body, CHAT_MIXED) is None


# --- Responses --------------------------------------------------------------------------------------------------


def ours(call_id: str) -> str:
    return f'{{"type":"function_call","call_id":"{call_id}","name":"bmcp_t_x","arguments":"{{}}"}}'


def output(call_id: str, kind: str = "function_call") -> str:
    text = f"says {call_id}"
    return f'{{"type":"{kind}_output","call_id":"{call_id}","output":"{text}"}}'


def given(*items: str, more: str = "") -> str:
    return f'{{"input":[{",".join(items)}],"temperature":1.0{more}}}'


CALL_A = '{"type":"function_call", "id":"fc_1","call_id":"a","name":"Read","arguments":"{\\"n\\": 1.50}"}'
CALL_B = '{"type":"custom_tool_call","call_id":"b","name":"patch","input":"..."}'
OUT_A, OUT_B = output("a"), output("b", "custom_tool_call")
REASONING = '{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"..."}'
ASK = '{"role":"user","content":"hello"}'
RESPONSES_MIXED = kept("responses", ["a", "b"], ("x", "a"), ("y", "b"), ("z", None))
XYZ = [output("x"), output("y"), output("z")]

RESPONSES_CASES = {
    "a whole history": (
        given(ASK, REASONING, CALL_A, CALL_B, OUT_A, OUT_B, ASK),
        given(ASK, REASONING, ours("x"), CALL_A, ours("y"), CALL_B, ours("z"), *XYZ, OUT_A, OUT_B, ASK),
    ),
    "an output directly after each call": (
        given(ASK, CALL_A, OUT_A, CALL_B, OUT_B),
        given(
            *(ASK, ours("x"), CALL_A, output("x"), OUT_A),
            *(ours("y"), CALL_B, ours("z"), output("y"), output("z"), OUT_B),
        ),
    ),
    "a call is gone": (
        given(ASK, CALL_B, OUT_B),
        given(ASK, ours("y"), CALL_B, ours("x"), ours("z"), output("x"), output("y"), output("z"), OUT_B),
    ),
    "the response before has the calls": (
        given(ASK, OUT_B, OUT_A, more=',"previous_response_id":"resp_1"'),
        given(ASK, *XYZ, OUT_B, OUT_A, more=',"previous_response_id":"resp_1"'),
    ),
    "the conversation has the calls": (
        given(OUT_A, OUT_B, more=',"conversation":{"id":"conv_1"}'),
        given(*XYZ, OUT_A, OUT_B, more=',"conversation":{"id":"conv_1"}'),
    ),
    "the client's calls are referred to one by one": (
        given(ASK, '{"type":"item_reference","id":"fc_1"}', OUT_A, OUT_B),
        given(
            *(ASK, '{"type":"item_reference","id":"fc_1"}', ours("x"), ours("y"), ours("z")),
            *(*XYZ, OUT_A, OUT_B),
        ),
    ),
}


@pytest.mark.parametrize("name", RESPONSES_CASES)
def test_items_get_our_calls_and_outputs_where_they_belong(name: str) -> None:
    before, after = RESPONSES_CASES[name]
    assert resumed("responses", before, RESPONSES_MIXED) == after


@pytest.mark.parametrize(
    "body",
    [
        given(ASK, CALL_A, CALL_B),
        given(ASK, OUT_A, OUT_B),
        given(ASK, more=',"previous_response_id":"resp_1"'),
        given(ours("x"), CALL_A, ours("y"), CALL_B, ours("z"), OUT_A),
        given(*XYZ, OUT_A, more=',"conversation":"conv_1"'),
        '{"input":"function_call a","previous_response_id":"resp_1"}',
        given('{"type":"function_call","call_id":["a"]}', '{"type":null,"call_id":"a"}', OUT_A),
    ],
)
def test_items_that_our_calls_do_not_belong_to_are_left_alone(body: str) -> None:
    assert resumed("responses", body, RESPONSES_MIXED) is None


def test_a_response_that_names_the_answer_names_its_last_turn() -> None:
    body = JSONObject(b'{"input":[ {"n":1.50} ],"previous_response_id" : "resp_1","store":true}')
    assert RESPONSES.read(body).references() == References(ids=frozenset(("resp_1",)))
    told = RESPONSES.read(body).completed(Found({"resp_1": "resp_9"}))
    assert told == b'{"input":[ {"n":1.50} ],"previous_response_id":"resp_9","store":true}'


# --- what is looked for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "body", "expected"),
    [
        ("messages", talk(HELLO, assistant(TEXT, A, B), user(A_SAYS)), {"a", "b"}),
        ("messages", talk(user(A_SAYS, B_SAYS), more=',"thread":{"type":"continue"}'), {"a", "b"}),
        ("messages", talk(user(A_SAYS, B_SAYS)), set()),
        ("chat_completions", talk(HELLO, calls(CHAT_A), tool("a"), calls(CHAT_B)), {"a", "b"}),
        ("responses", given(ASK, CALL_A, CALL_B, OUT_A), {"a", "b"}),
        ("responses", given(OUT_A, more=',"conversation":"conv_1"'), {"a"}),
        *[(dialect, "{}", set()) for dialect in HISTORIES],
    ],
)
def test_calls_of_the_client_are_looked_for(dialect: str, body: str, expected: set[str]) -> None:
    references = HISTORIES[dialect].read(JSONObject(body.encode())).references()
    assert references == References(calls=references.calls) and ids(references.calls) == expected
    assert bool(references) == bool(expected)


def test_a_long_history_is_looked_at_from_its_end() -> None:
    many = [f'{{"type":"function_call","call_id":"c{n}"}}' for n in range(3 * MAX_CALLS)]
    references = RESPONSES.read(JSONObject(given(*many).encode())).references()
    assert ids(references.calls) == {f"c{n}" for n in range(2 * MAX_CALLS, 3 * MAX_CALLS)}
    crowd = assistant(*(B.replace('"b"', f'"c{n}"') for n in range(2 * MAX_CALLS)))
    assert len(MESSAGES.read(JSONObject(talk(crowd).encode())).references().calls) == MAX_CALLS


def test_at_the_edge_of_what_is_looked_at_nothing_is_put_in_twice() -> None:
    others = [f'{{"type":"function_call","call_id":"c{n}"}}' for n in range(MAX_CALLS - 2)]
    before = given(CALL_A, CALL_B, *others, OUT_A, OUT_B)
    after = resumed("responses", before, RESPONSES_MIXED)
    assert after is not None and json.loads(after)["input"][0]["call_id"] == "x"
