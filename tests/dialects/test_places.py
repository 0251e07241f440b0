"""Where a client's call stands: the same place in each later request of a conversation, and in no other one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from aibridge_addon.dialects.history import Found, KeptTurn
from aibridge_addon.dialects.place import ANY, Place, Position
from aibridge_addon.dialects.turns import Call, Result, Text
from aibridge_addon.wire.json_object import JSONObject
from tests.support.dialects import DIALECTS, HISTORIES

Item = dict[str, Any]
ID = "functions.read:0"
INPUT = {"path": "a", "n": 1.0, "deep": {"b": 2, "a": [1e3]}}


class Talk:
    """A conversation in the form of a dialect."""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect
        self.items: list[Item] = []

    def asks(self, text: str) -> Talk:
        self.items.append({"role": "user", "content": text})
        return self

    def calls(self, said: str = "I read it.", name: str = "read", given: object = INPUT, id_: str = ID) -> Talk:
        if self.dialect == "messages":
            self.items.append(
                {"role": "assistant", "content": [{"type": "text", "text": said}, *self.content(id_, name, given)]}
            )
            self.items.append(
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id_, "content": "1"}]}
            )
        elif self.dialect == "chat_completions":
            self.items.append(
                {"role": "assistant", "content": said, "tool_calls": self.content(id_, name, given)[0]["tool_calls"]}
            )
            self.items.append({"role": "tool", "tool_call_id": id_, "content": "1"})
        else:
            self.items.append(
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": said}]}
            )
            self.items += self.content(id_, name, given)
            self.items.append({"type": "function_call_output", "call_id": id_, "output": "1"})
        return self

    def content(self, id_: str = ID, name: str = "read", given: object = INPUT) -> list[Item]:
        """What the model said in the turn with the call."""
        if self.dialect == "messages":
            return [{"type": "tool_use", "id": id_, "name": name, "input": given}]
        text = json.dumps(given)
        if self.dialect == "chat_completions":
            return [{"role": "assistant", "tool_calls": [{"id": id_, "function": {"name": name, "arguments": text}}]}]
        return [{"type": "function_call", "call_id": id_, "name": name, "arguments": text}]

    def body(self, **more: Any) -> JSONObject:
        return JSONObject(msgspec.json.encode({HISTORIES[self.dialect].member: self.items} | more))

    def position(self, **more: Any) -> Position:
        return HISTORIES[self.dialect].read(self.body(**more)).position

    def kept_at(self, **more: Any) -> Place:
        """The place of the next turn's call."""
        after = self.position(**more).after("answer_1")
        return HISTORIES[self.dialect].call_places(self.content(), [ID], after)[0]

    def places(self, **more: Any) -> frozenset[Place]:
        return HISTORIES[self.dialect].read(self.body(**more)).references().calls


BY_DIALECT = pytest.mark.parametrize("dialect", list(HISTORIES))


@BY_DIALECT
def test_a_call_is_found_in_every_later_request(dialect: str) -> None:
    kept = Talk(dialect).asks("Read.").kept_at()
    assert Talk(dialect).asks("Read.").calls().places() == {kept}
    assert kept in Talk(dialect).asks("Read.").calls().asks("And?").calls(id_="other").asks("So?").places()


OTHERS: dict[str, Callable[[Talk], Talk]] = {
    "another prompt": lambda talk: talk.asks("Write.").calls(),
    "one more prompt": lambda talk: talk.asks("Hello.").asks("Read.").calls(),
    "another call before it": lambda talk: talk.asks("Read.").calls(id_="b").calls(),
    "another name": lambda talk: talk.asks("Read.").calls(name="write"),
    "other arguments": lambda talk: talk.asks("Read.").calls(given=INPUT | {"path": "b"}),
    "another id": lambda talk: talk.asks("Read.").calls(id_="functions.read:1"),
}


@pytest.mark.parametrize("other", OTHERS)
@BY_DIALECT
def test_a_call_at_another_place_is_another_call(dialect: str, other: str) -> None:
    kept = Talk(dialect).asks("Read.").kept_at()
    assert kept not in OTHERS[other](Talk(dialect)).places()


@BY_DIALECT
def test_what_was_said_earlier_stands_before_a_call(dialect: str) -> None:
    kept = Talk(dialect).asks("Hi.").calls(said="One.", id_="x").kept_at()
    assert kept in Talk(dialect).asks("Hi.").calls(said="One.", id_="x").calls().places()
    assert kept not in Talk(dialect).asks("Hi.").calls(said="Two.", id_="x").calls().places()


def changed(dialect: str, items: list[Item]) -> list[Item]:
    """What clients change between two requests."""
    written = json.loads(json.dumps(items).replace("1000.0", "1000").replace("1.0", "1"))
    for item in written:
        if item.get("role") == "user" and isinstance(item["content"], str):
            reminder = {"type": "text", "text": "<system-reminder>It is late.</system-reminder>"}
            item["content"] = [{"type": "text", "text": item["content"] + "\n", "cache_control": {}}, reminder]
        for call in item.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(
                json.loads(call["function"]["arguments"]), sort_keys=True, indent=1
            )
        if "arguments" in item:
            item["arguments"] = json.dumps(json.loads(item["arguments"]), sort_keys=True, indent=1)
        for name in ("output", "content"):
            if item.get("role") == "tool" or "output" in item:
                item[name] = "[cleared]"
    return [{"role": "system", "content": "now"}, *written, {"role": "system", "content": "and now"}]


@BY_DIALECT
def test_what_clients_change_between_two_requests_does_not_count(dialect: str) -> None:
    before = Talk(dialect).asks("Hi.").calls(id_="x").asks("Read.")
    kept = before.kept_at()
    later = before.calls().asks("Thanks.")
    later.items = changed(dialect, later.items)
    assert kept in later.places()


@BY_DIALECT
def test_each_of_several_calls_with_one_id_gets_its_own_turn(dialect: str) -> None:
    history = HISTORIES[dialect]
    first, second = Talk(dialect).asks("Go on."), Talk(dialect).asks("Go on.").calls().asks("Go on.")
    found: dict[Place, KeptTurn] = {}
    for number, talk in enumerate((first, second)):
        call = Call("hidden:0", "bmcp_t_x", {}, talk.content("hidden:0", "bmcp_t_x", {})[0])
        if dialect == "chat_completions":
            call = Call(call.id, call.name, {}, call.item["tool_calls"][0])
        value = history.mixed_turn([ID], [Result(call, (Text(f"result {number}"),))])
        found[talk.kept_at()] = msgspec.json.decode(msgspec.json.encode(value), type=KeptTurn)
    body = Talk(dialect).asks("Go on.").calls().asks("Go on.").calls().body()
    told = history.read(body).completed(Found(turns=found))
    assert told is not None and told.count(b"hidden:0") == 4
    assert 0 < told.index(b"result 0") < told.index(b"result 1")
    assert told.index(b"result 0") < told.rindex(b"Go on.") < told.index(b"result 1")


@pytest.mark.parametrize(
    ("dialect", "first", "later"),
    [
        ("responses", {}, {"previous_response_id": "answer_1"}),
        ("responses", {"previous_response_id": "answer_0"}, {"previous_response_id": "answer_1"}),
        ("responses", {"store": False}, {"store": False, "previous_response_id": "answer_1"}),
        ("responses", {"conversation": "conv_1"}, {"conversation": {"id": "conv_1"}}),
        (
            "messages",
            {"thread": {"type": "create"}},
            {"thread": {"type": "continue", "previous_message_id": "answer_1"}},
        ),
    ],
)
def test_what_the_provider_has_is_named_by_its_id(dialect: str, first: Item, later: Item) -> None:
    history, talk = HISTORIES[dialect], Talk(dialect).asks("Read.")
    kept = history.call_places(talk.content(), [ID], talk.position(**first).after("answer_1"))
    result = Talk(dialect).calls()
    result.items = result.items[-1:]
    assert result.places(**later) & set(kept)
    for other in ("answer_2", "conv_2"):
        assert not result.places(
            **json.loads(json.dumps(later).replace("answer_1", other).replace("conv_1", other))
        ) & set(kept)


def test_an_item_that_is_only_referred_to_is_found_by_its_id() -> None:
    history = HISTORIES["responses"]
    call = Talk("responses").content()[0] | {"id": "fc_1"}
    kept = history.call_places([call], [ID], Talk("responses").asks("Read.").position().after("answer_1"))
    later = Talk("responses").asks("Read.")
    later.items += [{"type": "item_reference", "id": "fc_1"}, *Talk("responses").calls().items[-1:]]
    assert later.places() & set(kept)


# --- threads ----------------------------------------------------------------------------------------------------


@BY_DIALECT
def test_a_result_is_traced_by_its_conversations_opening(dialect: str) -> None:
    reading = DIALECTS[dialect].read(Talk(dialect).asks("Read.").body())
    place = DIALECTS[dialect].read(Talk(dialect).asks("Read.").calls().body()).result_of
    assert place is not None and place.after in reading.position.after("answer_1")
    for other in (Talk(dialect).asks("Write.").calls(), Talk(dialect).asks("Read.").calls(given={})):
        assert DIALECTS[dialect].read(other.body()).result_of not in (place, None)
    only = Talk(dialect).calls()
    only.items = only.items[-1:]
    assert DIALECTS[dialect].read(only.body()).result_of is None
    assert place.after != ANY
