"""Kept turns and ids of answers in Responses requests (API reference, "Conversation state").

Injected `function_call` items are added among the client's calls, and their `function_call_output` items before the
client's first output. If the server has the calls (`previous_response_id`, `conversation`), only the outputs are added.
They are found by the id of that response or conversation. If the request refers to its calls one by one
(`item_reference`), calls and outputs are added in full. They are found by the item's id.

Reasoning requires the item that followed it ("Reasoning models"), so an injected call is restored after its reasoning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any

import msgspec

from aibridge_addon.dialects.history import (
    MAX_CALLS,
    MAX_ELEMENTS,
    MAX_OPENING,
    Followers,
    Found,
    History,
    Insertions,
    Kept,
    KeptTurn,
    References,
    RequestHistory,
    absent,
    maybe_decode,
    opening_of,
)
from aibridge_addon.dialects.place import After, Place, Position, call_digest
from aibridge_addon.dialects.responses.inject import function_call_output
from aibridge_addon.dialects.responses.reader import read_call
from aibridge_addon.dialects.trail import Trail, by_a_person, said_in, texts
from aibridge_addon.dialects.turns import Result
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.json_values import as_dict, as_text

CALL, OUTPUT, REASONING, REFERENCE = "_call", "_call_output", "reasoning", "item_reference"
EMPTY = msgspec.Raw(b"null")
BESIDE = ("instructions", "prompt", "user", "safety_identifier")
"""Members beside the input that belong to a whole trail."""


class _Item(msgspec.Struct, frozen=True, gc=False):
    """The members of any item that are searched."""

    type: str = ""
    role: Any = None
    content: msgspec.Raw = EMPTY
    id: str | None = None
    call_id: str | None = None
    name: Any = None
    arguments: Any = None
    input: Any = None
    action: Any = None
    operation: Any = None
    output: msgspec.Raw = EMPTY
    encrypted_content: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of a reasoning item, or of a reference to one."""
        return [name for name in (self.id, self.encrypted_content) if name]

    @property
    def is_call(self) -> bool:
        return bool(self.call_id) and self.type.endswith(CALL)

    @property
    def is_output(self) -> bool:
        return bool(self.call_id) and self.type.endswith(OUTPUT)

    @property
    def digest(self) -> str:
        made = (self.arguments, self.input, self.action, self.operation)
        return call_digest([self.type, self.name], next((value for value in made if value is not None), ""))


_item = msgspec.json.Decoder(_Item)


class ResponsesHistory(History):
    member = "input"

    def read(self, body: JSONObject, *, whole: bool = False) -> RequestHistory:
        return _ResponsesRequest(body, self.held(body), whole=whole)

    def result(self, result: Result) -> dict[str, Any]:
        return function_call_output(result)

    def held(self, body: JSONObject) -> After | None:
        if name := _conversation(body):
            return "conversation", name
        previous = body.text("previous_response_id")
        return ("answer", previous) if previous else None

    def maybe_call(self, element: dict[str, Any], call_id: str) -> tuple[str, Any] | None:
        if element.get("call_id") != call_id or not as_text(element.get("type")).endswith(CALL):
            return None
        call = read_call(element)
        return call.name, call.input

    def opening(self, body: JSONObject) -> Position:
        return _position(body, None if self.held(body) is not None else opening_of(_opening(body)))

    def call_places(
        self, content: Sequence[Mapping[str, Any]], client_calls: Sequence[str], after: Sequence[After]
    ) -> list[Place]:
        items = (maybe_decode(encode(item), _item) for item in content)
        first = next((item for item in items if item and item.is_call and item.call_id in client_calls), None)
        if first is None:
            return []
        name = first.call_id or ""
        places = [Place(before, name, first.digest if before[0] == "history" else "") for before in after]
        if first.id and any(before[0] == "answer" for before in after):
            places.append(Place(("item", first.id)))
        return places

    def followers(
        self, content: Sequence[Mapping[str, Any]], results: Sequence[Result]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        by_id = {result.call.id: result for result in results if result.call.id}
        for place, item in enumerate(content):
            names = [name for name in (item.get("id"), item.get("encrypted_content")) if isinstance(name, str) and name]
            if item.get("type") != "reasoning" or not names:
                continue
            call_ids = (as_text(after.get("call_id")) for after in islice(content, place + 1, None))
            own = [by_id[call_id] for call_id in takewhile(by_id.__contains__, call_ids)]
            if own:
                value = {
                    "call_ids": [result.call.id for result in own],
                    "items": [*(result.call.item for result in own), *map(self.result, own)],
                }
                yield from ((name, value) for name in names)


def _conversation(body: JSONObject) -> str:
    conversation = body.get("conversation")
    return as_text(conversation) or as_text(as_dict(conversation).get("id"))


def _position(body: JSONObject, digest: After | None) -> Position:
    # Without `store`, too: on a WebSocket, the server has the connection's last answer (guide "WebSocket mode").
    return Position(digest, _conversation(body), named=True)


def _opening(body: JSONObject) -> Iterator[str | bytes]:
    if (text := body.text("input")) is not None:
        yield from by_a_person((text,))
    for raw in body.elements("input", MAX_OPENING):
        item = maybe_decode(raw, _item)
        if item is not None and (item.role == "assistant" or item.is_call or item.is_output or item.type == REASONING):
            return
        if item is not None and item.role == "user":
            yield from said_in(item.content)


class _ResponsesRequest(RequestHistory):
    def __init__(self, body: JSONObject, held: After | None, *, whole: bool) -> None:
        self._body = body
        self._items = body.elements("input")
        self._places: deque[tuple[Place, int]] = deque(maxlen=MAX_CALLS)
        """The calls and references, each with its index; if the server has the calls, also the outputs."""
        self._reasonings: deque[tuple[int, _Item]] = deque(maxlen=MAX_ELEMENTS)
        self._refers: deque[tuple[int, _Item]] = deque(maxlen=MAX_ELEMENTS)
        trail = Trail(whole=whole)
        trail.opened(body, BESIDE)
        if (text := body.text("input")) is not None:
            trail.asked(by_a_person((text,)))
        self._server_has_calls = body.get("previous_response_id") is not None or body.get("conversation") is not None
        for index, raw in enumerate(self._items):
            item = maybe_decode(raw, _item)
            if item is not None:
                self._follow(trail, index, item, held)
            else:
                trail.stated("", msgspec.Raw(raw))
        self.results_alone = trail.results_alone
        self.position = _position(body, trail.before if held is None else None)

    def _follow(self, trail: Trail, index: int, item: _Item, held: After | None) -> None:
        if item.is_call:
            digest, call_id = item.digest, item.call_id or ""
            before = trail.called(call_id, digest)
            self._places.append((Place(before, call_id, digest) if held is None else Place(held, call_id), index))
        elif item.is_output:
            trail.returned(item.call_id, item.output)
            if held is not None:
                self._places.append((Place(held, item.call_id or ""), index))
        elif item.type == REASONING:
            self._reasonings.append((index, item))
        elif item.type == REFERENCE:
            self._refers.append((index, item))
            if item.id:
                self._places.append((Place(("item", item.id)), index))
        elif item.role == "assistant":
            for text in texts(item.content):
                trail.answered(text)
        elif item.role == "user":
            trail.asked(said_in(item.content))
        elif item.role is not None:
            trail.stated(as_text(item.role), item.content)

    def calls(self) -> Iterable[tuple[Place, bytes]]:
        return ((place, self._items[index]) for place, index in reversed(self._places))

    def references(self) -> References:
        named = self._body.text("previous_response_id")
        names = (
            name for items in (self._reasonings, self._refers) for _, item in reversed(items) for name in item.names
        )
        return References(
            frozenset((named,) if named else ()),
            frozenset(place for place, _ in self._places),
            frozenset(islice(names, MAX_CALLS)),
        )

    def completed(self, found: Found) -> bytes | None:
        body = self._body
        changes = {}
        last = found.aliases.get(body.text("previous_response_id") or "")
        if last is not None:
            changes["previous_response_id"] = encode(last)
        if found.turns or found.followers:
            completion = _Completion(self._items, servers=self._server_has_calls)
            for items in (self._reasonings, self._refers):
                completion.follow(found.followers, items)
            for place, index in self._places:
                if (turn := found.turns.get(place)) is not None:
                    completion.complete(turn, index)
            if completion.put:
                changes["input"] = completion.put.into(self._items)
        return body.replaced(changes) if changes else None


class _Completion:
    """Collects the insertions into the input."""

    def __init__(self, items: Sequence[bytes], *, servers: bool) -> None:
        self.put = Insertions()
        self._items = items
        self._servers = servers
        """The server has the calls."""
        self._followed: set[str] = set()
        """Names of the reasoning that was completed."""
        self._done: dict[int, set[str]] = {}
        """Ids of the calls that were put in, by the index of the first output after them."""

    def follow(self, followers: Mapping[str, Followers], reasonings: Iterable[tuple[int, _Item]]) -> None:
        """Restore the items that followed each reasoning item."""
        for place, item in reasonings if followers else ():
            those = next((followers[name] for name in item.names if name in followers), None)
            if those is None or not self._followed.isdisjoint(item.names):
                continue
            self._followed.update(item.names)
            for one in those.items if not self._has(place + 1, those) else ():
                self.put.add(place + 1, one)

    def _has(self, place: int, those: Followers) -> bool:
        """Return whether the calls are already there. Other items may stand between them and the reasoning."""
        for raw in islice(self._items, place, place + len(those.items)):
            item = maybe_decode(raw, _item)
            if item is not None and item.call_id in those.call_ids:
                return True
        return False

    def complete(self, turn: KeptTurn, index: int) -> None:
        """Complete the turn with the item at this index: a call of the client, a reference to one, or its output."""
        calls, outputs = self._own(turn, index)
        own = sorted(calls[call_id] for call_id in turn.client_calls if call_id in calls)
        answers = sorted(outputs[call_id] for call_id in turn.client_calls if call_id in outputs)
        if not answers:
            return  # the client has not answered its own calls yet
        left = absent(turn, calls.keys() | outputs.keys(), self._done.setdefault(answers[0], set()))
        places = [self._call_place(kept, turn, calls, own, answers) for kept in left]
        if own or not self._servers:
            for kept, place in zip(left, places, strict=True):
                self.put.add(place, kept.call)
        for kept, place in zip(left, places, strict=True):
            # Some clients put each output directly after its call. An injected output must not precede its call.
            self.put.add(next((answer for answer in answers if answer >= place), place), kept.result)

    def _own(self, turn: KeptTurn, index: int) -> tuple[dict[str, int], dict[str, int]]:
        """Return the indexes of a turn's calls and outputs, around an index.

        The turn ends before an item that repeats one of its ids, and after its first output before any other turn's.
        """
        ids = {*turn.client_calls, *(kept.id for kept in turn.kept)}
        calls: dict[str, int] = {}
        outputs: dict[str, int] = {}
        for place in range(self._begin(ids, index), len(self._items)):
            item = maybe_decode(self._items[place], _item)
            if item is None or not item.call_id:
                continue
            if item.is_call:
                if item.call_id in calls or (outputs and item.call_id not in ids):
                    break
                calls[item.call_id] = place
            elif item.is_output:
                if item.call_id in outputs or (outputs and item.call_id not in ids):
                    break
                if item.call_id in ids:
                    outputs[item.call_id] = place
        return calls, outputs

    def _begin(self, ids: Collection[str], index: int) -> int:
        """Return the index at which a turn begins: further items of the same kind may stand directly before one."""
        first = maybe_decode(self._items[index], _item)
        seen = {first.call_id} if first is not None else set()
        while index and first is not None and first.type != REFERENCE:
            item = maybe_decode(self._items[index - 1], _item)
            if item is None or item.call_id not in ids or item.call_id in seen or item.is_call != first.is_call:
                break
            seen.add(item.call_id)
            index -= 1
        return index

    @staticmethod
    def _call_place(
        kept: Kept, turn: KeptTurn, calls: Mapping[str, int], own: Sequence[int], answers: Sequence[int]
    ) -> int:
        if not own:
            return answers[0]
        if kept.anchor in turn.client_calls and kept.anchor in calls:
            return calls[kept.anchor]
        return own[-1] + 1
