"""Kept turns and ids of answers in Responses requests (API reference, "Conversation state").

Injected `function_call` items are added among the client's calls, and their `function_call_output` items before the
client's first output. If the server has the calls (`previous_response_id`, `conversation`), only the outputs are added.
If the request refers to its calls one by one (`item_reference`), calls and outputs are added in full.

Reasoning requires the item that followed it ("Reasoning models"), so an injected call is restored after its reasoning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, takewhile
from typing import Any

import msgspec

from aibridge_addon.dialects.history import (
    MAX_CALL_IDS,
    MAX_ELEMENTS,
    Followers,
    Found,
    History,
    Insertions,
    Kept,
    KeptTurn,
    References,
    RequestHistory,
    absent,
    count_kept,
    maybe_decode,
)
from aibridge_addon.dialects.responses.inject import function_call_output
from aibridge_addon.dialects.turns import Result
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.json_values import as_text

CALL, OUTPUT, REASONING, REFERENCE = "_call", "_call_output", "reasoning", "item_reference"


class _Item(msgspec.Struct, frozen=True, gc=False):
    """The members of any item that are searched."""

    type: str = ""
    id: str | None = None
    call_id: str | None = None
    encrypted_content: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of a reasoning item, or of a reference to one."""
        return [name for name in (self.id, self.encrypted_content) if name]


_item = msgspec.json.Decoder(_Item)
_Items = list[tuple[int, _Item]]


class ResponsesHistory(History):
    def read(self, body: JSONObject) -> RequestHistory:
        return _ResponsesRequest(body)

    def result(self, result: Result) -> dict[str, Any]:
        return function_call_output(result)

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


class _ResponsesRequest(RequestHistory):
    def __init__(self, body: JSONObject) -> None:
        self._body = body
        self._items = body.elements("input")
        self._calls: _Items = []
        self._outputs: _Items = []
        self._reasonings: _Items = []
        self._refers: _Items = []
        for place in range(len(self._items) - 1, -1, -1):
            item = maybe_decode(self._items[place], _item)
            if item is None:
                continue
            if item.type == REASONING:
                self._reasonings.append((place, item))
            elif item.type == REFERENCE:
                self._refers.append((place, item))
            elif item.call_id and item.type.endswith(CALL):
                self._calls.append((place, item))
            elif item.call_id and item.type.endswith(OUTPUT):
                self._outputs.append((place, item))

    def references(self) -> References:
        named = self._body.text("previous_response_id")
        calls = (item.call_id for _, item in self._looked_at(self._calls, self._outputs) if item.call_id)
        names = (name for _, item in self._looked_at(self._reasonings, self._refers) for name in item.names)
        return References(
            frozenset((named,) if named else ()),
            frozenset(islice(calls, MAX_CALL_IDS)),
            frozenset(islice(names, MAX_CALL_IDS)),
        )

    def completed(self, found: Found) -> bytes | None:
        body = self._body
        changes = {}
        last = found.aliases.get(body.text("previous_response_id") or "")
        if last is not None:
            changes["previous_response_id"] = encode(last)
        if found.turns or found.followers:
            more = count_kept(found.turns) + sum(len(those.items) for those in found.followers.values())
            completion = _Completion(
                self._looked_at(self._calls, more=more),
                self._looked_at(self._outputs, more=more),
                servers=body.get("previous_response_id") is not None or body.get("conversation") is not None,
                refers=bool(self._refers),
            )
            completion.follow(found.followers, self._looked_at(self._reasonings, self._refers))
            for turn in found.turns:
                completion.complete(turn)
            if completion.put:
                changes["input"] = completion.put.into(self._items)
        return body.replaced(changes) if changes else None

    @staticmethod
    def _looked_at(*kinds: _Items, more: int = 0) -> Iterator[tuple[int, _Item]]:
        """Yield the last items of these kinds. `more` raises the limit, to cover items that were inserted."""
        return chain.from_iterable(items[: MAX_ELEMENTS + more] for items in kinds)


class _Completion:
    """Collects the insertions into the input."""

    def __init__(
        self, calls: Iterable[tuple[int, _Item]], outputs: Iterable[tuple[int, _Item]], *, servers: bool, refers: bool
    ) -> None:
        self.put = Insertions()
        self._servers = servers
        """The server has the calls."""
        self._refers = refers
        self._calls: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        self._done: set[str] = set()
        for items, places in ((calls, self._calls), (outputs, self._outputs)):
            for place, item in items:
                places.setdefault(item.call_id or "", place)

    def follow(self, followers: Mapping[str, Followers], reasonings: Iterable[tuple[int, _Item]]) -> None:
        """Restore the items that followed each reasoning item."""
        for place, item in reasonings if followers else ():
            those = next((followers[name] for name in item.names if name in followers), None)
            known = (self._done, self._calls, self._outputs)
            if those is not None and not any(call_id in ids for call_id in those.call_ids for ids in known):
                self._done.update(those.call_ids)
                for one in those.items:
                    self.put.add(place + 1, one)

    def complete(self, turn: KeptTurn) -> None:
        own = sorted(self._calls[call_id] for call_id in turn.client_calls if call_id in self._calls)
        answers = sorted(self._outputs[call_id] for call_id in turn.client_calls if call_id in self._outputs)
        if not answers or not (own or self._servers or self._refers):
            return  # the client has not answered its own calls yet
        left = absent(turn, self._calls.keys() | self._outputs.keys(), self._done)
        calls = [self._call_place(kept, turn, own, answers) for kept in left]
        if own or not self._servers:
            for kept, place in zip(left, calls, strict=True):
                self.put.add(place, kept.call)
        for kept, place in zip(left, calls, strict=True):
            # Some clients put each output directly after its call. An injected output must not precede its call.
            self.put.add(next((answer for answer in answers if answer >= place), place), kept.result)

    def _call_place(self, kept: Kept, turn: KeptTurn, own: list[int], answers: list[int]) -> int:
        if not own:
            return answers[0]
        if kept.anchor in turn.client_calls and kept.anchor in self._calls:
            return self._calls[kept.anchor]
        return own[-1] + 1
