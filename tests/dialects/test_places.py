"""Where a client's call stands: the same place in each later request of a conversation, and in no other one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from aibridge_addon.dialects.history import Found, KeptTurn, RequestHistory
from aibridge_addon.dialects.place import ANY, Place, Position
from aibridge_addon.dialects.turns import Call, Result, Text
from aibridge_addon.wire.json_object import JSONObject
from tests.support.dialects import DIALECTS, HISTORIES

Item = dict[str, Any]
ID = "functions.read:0"
INPUT = {"path": "a", "n": 1.0, "deep": {"b": 2, "a": [1e3]}}


class Talk:
    """A conversation in the form of a dialect. `whole`: its client names no session."""

    def __init__(self, dialect: str, *, whole: bool = False) -> None:
        self.dialect = dialect
        self.whole = whole
        self.items: list[Item] = []

    def asks(self, text: str) -> Talk:
        self.items.append({"role": "user", "content": text})
        return self

    def shows(self, name: str) -> Talk:
        """The user sends only an image."""
        url = f"https://images.example/{name}.png"
        part: Item = {"type": "image_url", "image_url": {"url": url}}
        if self.dialect == "messages":
            part = {"type": "image", "source": {"type": "url", "url": url}}
        elif self.dialect == "responses":
            part = {"type": "input_image", "image_url": url}
        self.items.append({"role": "user", "content": [part]})
        return self

    def is_instructed(self, text: object, role: str = "system") -> Talk:
        self.items.append({"role": role, "content": text})
        return self

    def gets(self, result: object) -> Talk:
        """The last result is this one."""
        last = self.items[-1]
        if self.dialect == "messages":
            last["content"][0]["content"] = result
        else:
            last["output" if self.dialect == "responses" else "content"] = result
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

    def read(self, **more: Any) -> RequestHistory:
        return HISTORIES[self.dialect].read(self.body(**more), whole=self.whole)

    def position(self, **more: Any) -> Position:
        return self.read(**more).position

    def kept_at(self, **more: Any) -> Place:
        """The place of the next turn's call."""
        after = self.position(**more).after("answer_1")
        return HISTORIES[self.dialect].call_places(self.content(), [ID], after)[0]

    def places(self, **more: Any) -> frozenset[Place]:
        return self.read(**more).references().calls


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


@pytest.mark.parametrize("whole", [False, True])
@BY_DIALECT
def test_what_a_person_shows_stands_before_a_call(dialect: str, whole: bool) -> None:
    kept = Talk(dialect, whole=whole).shows("a").kept_at()
    assert kept in Talk(dialect, whole=whole).shows("a").calls().places()
    assert kept not in Talk(dialect, whole=whole).shows("b").calls().places()
    marked = Talk(dialect, whole=whole).shows("a").calls()
    marked.items[0]["content"][0]["cache_control"] = {"type": "ephemeral"}
    assert kept in marked.places()


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("whole", [False, True])
@BY_DIALECT
def test_instructions_stand_before_a_call_outside_of_a_session(dialect: str, whole: bool, role: str) -> None:
    def talk(number: int, form: Callable[[str], object] = str) -> Talk:
        return Talk(dialect, whole=whole).is_instructed(form(f"The user is {number}."), role).asks("Read.")

    kept = talk(1).kept_at()
    assert kept in talk(1).calls().places()
    assert (kept in talk(2).calls().places()) == (not whole)
    assert kept in talk(1, lambda text: [{"type": "text", "text": text, "cache_control": {}}]).calls().places()


BESIDE = [
    ("messages", "system", "The user is 1.", "The user is 2."),
    ("messages", "system", [{"type": "text", "text": "1"}], [{"type": "text", "text": "2"}]),
    ("messages", "metadata", {"user_id": "1"}, {"user_id": "2"}),
    ("chat_completions", "user", "1", "2"),
    ("chat_completions", "safety_identifier", "1", "2"),
    ("responses", "instructions", "The user is 1.", "The user is 2."),
    ("responses", "prompt", {"id": "p", "variables": {"user": "1"}}, {"id": "p", "variables": {"user": "2"}}),
    ("responses", "user", "1", "2"),
    ("responses", "safety_identifier", "1", "2"),
]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("dialect", "name", "one", "two"), BESIDE)
def test_members_beside_the_history_stand_before_a_call_outside_of_a_session(
    dialect: str, name: str, one: object, two: object, whole: bool
) -> None:
    kept = Talk(dialect, whole=whole).asks("Read.").kept_at(**{name: one})
    later = Talk(dialect, whole=whole).asks("Read.").calls()
    assert kept in later.places(**{name: one})
    assert (kept in later.places(**{name: two})) == (not whole)
    assert (kept in later.places()) == (not whole)


RESULTS: list[tuple[object, object]] = [
    ("a", "b"),
    ([{"type": "text", "text": "a"}], [{"type": "text", "text": "b"}]),
    ([{"type": "image", "source": {"data": "a"}}], [{"type": "image", "source": {"data": "b"}}]),
    ({"a": 1}, {"a": 2}),
    (None, 1),
]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("one", "two"), RESULTS)
@BY_DIALECT
def test_earlier_results_stand_before_a_call_outside_of_a_session(
    dialect: str, one: object, two: object, whole: bool
) -> None:
    def talk(result: object) -> Talk:
        return Talk(dialect, whole=whole).asks("Read.").calls(id_="x").gets(result)

    kept = talk(one).kept_at()
    assert kept in talk(one).calls().places()
    assert (kept in talk(two).calls().places()) == (not whole)
    if isinstance(one, str):
        assert kept in talk([{"type": "text", "text": one, "cache_control": {}}]).calls().places()


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
    [place] = DIALECTS[dialect].read(Talk(dialect).asks("Read.").calls().body()).result_of
    assert place.after in reading.position.after("answer_1")
    for other in (Talk(dialect).asks("Write.").calls(), Talk(dialect).asks("Read.").calls(given={})):
        assert place not in DIALECTS[dialect].read(other.body()).result_of
    only = Talk(dialect).calls()
    only.items = only.items[-1:]
    assert DIALECTS[dialect].read(only.body()).result_of == ()


@BY_DIALECT
def test_an_opening_without_a_word_counts_by_what_it_shows(dialect: str) -> None:
    one, two = (DIALECTS[dialect].read(Talk(dialect).shows(name).calls().body()).result_of for name in ("a", "b"))
    assert one != two
    nothing = DIALECTS[dialect].read(Talk(dialect).calls().body()).result_of
    assert [place.after for place in nothing] == [ANY] and nothing[0].call, "name and arguments count"


def traced(talk: Talk, *call_ids: str) -> tuple[Place, ...]:
    return HISTORIES[talk.dialect].places_by_trail(talk.body(), talk.read(), call_ids)


@BY_DIALECT
def test_outside_of_a_session_a_result_is_traced_by_all_that_stands_before_its_call(dialect: str) -> None:
    def talk(result: str) -> Talk:
        return Talk(dialect, whole=True).asks("Read.").calls(id_="x").gets(result)

    after = talk("1").position().after("")
    assert [place.after in after for place in traced(talk("1").calls(), ID)] == [True]
    assert [place.after in after for place in traced(talk("2").calls(), ID)] == [False]
    only = talk("1").calls()
    only.items = only.items[-1:]
    assert traced(only, ID) == ()


def test_results_between_the_calls_of_one_answer_are_traced_to_it() -> None:
    asked = Talk("responses", whole=True).asks("Read.")
    answered = Talk("responses", whole=True).asks("Read.")
    for id_ in ("x", "y"):
        answered.items += Talk("responses").calls(id_=id_).items[1:]
    assert traced(answered, "x", "y")[-1].after == asked.position().digest
