"""Converse requests after a mixed turn, or after an answer of several turns: exactly what goes to Bedrock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from aibridge_addon.dialects import CONVERSE
from aibridge_addon.dialects.history import Followers, Found, KeptTurn
from aibridge_addon.dialects.turns import Call, Result, Text
from aibridge_addon.wire.json_object import JSONObject
from tests.dialects.test_history import placed

A = '{"toolUse":{ "toolUseId":"a","name":"Read","input":{"big": 12345678901234567890123, "f":1.50} }}'
B = '{"toolUse":{"name":"Read","toolUseId":"b","input":{}}}'
A_SAYS = '{"toolResult":{"toolUseId":"a", "content":[{"text":"\\u00e9"}]}}'
B_SAYS = '{"toolResult":{"toolUseId":"b","content":[],"status":"error"}}'
TEXT = '{"text":"let me see"}'
POINT = '{"cachePoint":{"type":"default"}}'
HELLO = '{"role": "user", "content": [{"text":"hello"}]}'
AFTERWARDS = ('{"role":"assistant","content":[{"text":"done"}]}', '{"role":"user","content":[{"text":"thanks"}]}')


def history() -> Any:
    assert CONVERSE.history is not None
    return CONVERSE.history


def called(call_id: str, anchor: str | None = None) -> Call:
    item = {"toolUse": {"toolUseId": call_id, "name": "bmcp_t_x", "input": {"n": 1}}}
    return Call(call_id, "bmcp_t_x", {"n": 1}, item, anchor)


def answered(call_id: str, anchor: str | None = None) -> Result:
    return Result(called(call_id, anchor), (Text(f"says {call_id}"),))


def kept(client_calls: Sequence[str], *ours: tuple[str, str | None]) -> KeptTurn:
    value = history().mixed_turn(client_calls, [answered(call_id, anchor) for call_id, anchor in ours])
    return msgspec.json.decode(msgspec.json.encode(value), type=KeptTurn)


def use(call_id: str) -> str:
    return f'{{"toolUse":{{"toolUseId":"{call_id}","name":"bmcp_t_x","input":{{"n":1}}}}}}'


def says(call_id: str) -> str:
    return f'{{"toolResult":{{"toolUseId":"{call_id}","content":[{{"text":"says {call_id}"}}]}}}}'


def talk(*messages: str, more: str = "") -> str:
    return f'{{"messages":[{",".join(messages)}],"inferenceConfig":{{"temperature":1.0}}{more}}}'


def assistant(*blocks: str) -> str:
    return f'{{"role":"assistant","content":[{",".join(blocks)}]}}'


def user(*blocks: str) -> str:
    return f'{{"role":"user","content":[{",".join(blocks)}]}}'


def resumed(body: str, *turns: KeptTurn) -> str | None:
    read = history().read(JSONObject(body.encode()))
    completed = read.completed(placed(read, turns))
    if completed is not None:
        again = history().read(JSONObject(completed))
        assert again.completed(placed(again, turns)) is None, "something is put in twice"
    return None if completed is None else completed.decode()


MIXED = kept(["a", "b"], ("x", "a"), ("y", "b"), ("z", None))
CASES = {
    "each call before the client's call that it stood before": (
        talk(HELLO, assistant(TEXT, A, B), user(A_SAYS, B_SAYS)),
        talk(
            HELLO,
            assistant(TEXT, use("x"), A, use("y"), B, use("z")),
            user(says("x"), says("y"), says("z"), A_SAYS, B_SAYS),
        ),
    ),
    "a history that has gone on, with a cache point": (
        talk(HELLO, assistant(A, B), user(B_SAYS, A_SAYS, TEXT, POINT), *AFTERWARDS),
        talk(
            HELLO,
            assistant(use("x"), A, use("y"), B, use("z")),
            user(says("x"), says("y"), says("z"), B_SAYS, A_SAYS, TEXT, POINT),
            *AFTERWARDS,
        ),
    ),
}
LEFT_ALONE = {
    "calls that are not answered yet": talk(HELLO, assistant(A, B)),
    "results without calls": talk(HELLO, user(A_SAYS, B_SAYS)),
    "another conversation": talk(HELLO, assistant(TEXT), user(TEXT)),
    "messages that are none": '{"messages":"a toolUse"}',
    "contents that are none": '{"messages":[{"role":"assistant","content":"a"},{"role":"assistant","content":[1]}]}',
    "calls of a person": talk(user(A, B), user(A_SAYS)),
    "calls of Bedrock's own tools": talk(
        HELLO, assistant(A.replace('"name"', '"type":"server_tool_use","name"')), user(TEXT)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_conversation_gets_our_calls_and_results_where_they_belong(name: str) -> None:
    before, after = CASES[name]
    assert resumed(before, MIXED) == after


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_conversation_that_our_calls_do_not_belong_to_is_left_alone(name: str) -> None:
    assert resumed(LEFT_ALONE[name], MIXED) is None


def thought(signature: str) -> str:
    return f'{{"reasoningContent":{{"reasoningText":{{"text":"Hm.","signature":"{signature}"}}}}}}'


REDACTED = '{"reasoningContent":{"redactedContent":"cmVk"}}'


@pytest.mark.parametrize(("first", "name"), [(thought("s1"), "s1"), (REDACTED, "cmVk")], ids=["signed", "redacted"])
def test_a_hidden_turn_is_put_back_behind_its_thinking(first: str, name: str) -> None:
    content = [json.loads(first), json.loads(TEXT), called("x").item]
    [(named, value)] = history().followers(content, [answered("x")])
    assert named == name
    followers = msgspec.json.decode(msgspec.json.encode(value), type=Followers)
    body = talk(HELLO, assistant(first, TEXT, thought("s2"), A), user(A_SAYS))
    read = history().read(JSONObject(body.encode()))
    assert read.references().reasoning == {name, "s2"}
    completed = read.completed(Found(followers={name: followers}))
    assert (completed or b"").decode() == talk(
        HELLO, assistant(first, TEXT, use("x")), user(says("x")), assistant(thought("s2"), A), user(A_SAYS)
    )
    again = history().read(JSONObject(completed or b""))
    assert again.completed(Found(followers={name: followers})) is None


@pytest.mark.parametrize("whole", [False, True])
def test_a_cache_point_that_moves_does_not_change_a_place(whole: bool) -> None:
    first = talk(user(TEXT, POINT), assistant(A), user(A_SAYS))
    later = talk(user(TEXT), assistant(A), user(A_SAYS, POINT), *AFTERWARDS)
    places = [history().read(JSONObject(body.encode()), whole=whole).references().calls for body in (first, later)]
    assert places[0] == places[1] and len(places[0]) == 1


def image(data: str) -> str:
    return f'{{"image":{{"format":"png","source":{{"bytes":"{data}"}}}}}}'


def test_an_attachment_is_a_part_of_the_place() -> None:
    bodies = [talk(user(TEXT, image(data)), assistant(A), user(A_SAYS)) for data in ("aGk=", "aG8=", "aGk=")]
    one, other, again = (history().read(JSONObject(body.encode())).references().calls for body in bodies)
    assert one == again != other
    openings = [CONVERSE.read(JSONObject(body.encode())).position for body in bodies]
    assert openings[0] == openings[2] != openings[1]


def test_the_call_that_a_result_answers_is_found() -> None:
    reading = CONVERSE.read(JSONObject(talk(HELLO, assistant(TEXT, A), user(A_SAYS)).encode()))
    assert reading.answered_call_id == "a"
    assert [place.call_id for place in reading.result_of] == ["a"]
    place = next(iter(history().read(JSONObject(talk(HELLO, assistant(A), user(A_SAYS)).encode())).references().calls))
    assert reading.result_of[0].call == place.call
    content = [json.loads(A), called("x").item]
    assert [found.call for found in history().call_places(content, ["a"], [("history", "h")])] == [place.call]
