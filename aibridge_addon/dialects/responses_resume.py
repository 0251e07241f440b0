"""Kept turns and ids of answers in Responses requests (API reference, "Conversation state").

Our `function_call` items go among the client's calls; our `function_call_output` items before the first output of the
client. Where the calls are the server's (`previous_response_id`, `conversation`) only the outputs are put in; where the
request refers to them one by one (`item_reference`) it has not referred to ours, which are put in whole. Reasoning may
not stand without the item that followed it ("Reasoning models"), so a call of ours that did is put behind it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any

import msgspec

from aibridge_addon.dialects.base import as_text
from aibridge_addon.dialects.kept import (
    MAX_CALL_IDS,
    Followers,
    Found,
    Insertions,
    Kept,
    KeptTurn,
    References,
    Resumption,
    absent,
    encode,
    pieces,
    scan,
)
from aibridge_addon.dialects.responses_inject import function_call_output
from aibridge_addon.dialects.turns import Result
from aibridge_addon.wire.json_object import JSONObject

CALL, OUTPUT, REFERENCE = b'_call"', b'_call_output"', b'"item_reference"'
REASONING = b'"reasoning"'


class _Item(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    call_id: str = ""


class _Reasoning(msgspec.Struct, frozen=True, gc=False):
    """An item of reasoning, or a reference to one."""

    type: str = ""
    id: str | None = None
    encrypted_content: str | None = None

    @property
    def names(self) -> list[str]:
        known = self.type in ("reasoning", "item_reference")
        return [name for name in (self.id, self.encrypted_content) if name] if known else []


_item = msgspec.json.Decoder(_Item)
_reasoning = msgspec.json.Decoder(_Reasoning)


class ResponsesResumption(Resumption):
    def references(self, body: JSONObject) -> References:
        named = body.text("previous_response_id")
        items = body.elements("input")
        found = (
            item.call_id
            for marker, suffix in ((CALL, "_call"), (OUTPUT, "_call_output"))
            for _, item in scan(items, marker, _item)
            if item.type.endswith(suffix) and item.call_id
        )
        names = (name for _, item in _reasonings(items) for name in item.names)
        return References(
            frozenset((named,) if named else ()),
            frozenset(islice(found, MAX_CALL_IDS)),
            frozenset(islice(names, MAX_CALL_IDS)),
        )

    def resumed(self, body: JSONObject, found: Found) -> bytes | None:
        changes = {}
        last = found.aliases.get(body.text("previous_response_id") or "")
        if last is not None:
            changes["previous_response_id"] = encode(last)
        if found.turns or found.followers:
            history = _History(body, pieces(found.turns) + sum(len(those.items) for those in found.followers.values()))
            history.follow(found.followers)
            for turn in found.turns:
                history.complete(turn)
            if history.put:
                changes["input"] = history.put.into(history.items)
        return body.replaced(changes) if changes else None

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


def _reasonings(items: Sequence[bytes], more: int = 0) -> Iterator[tuple[int, _Reasoning]]:
    """The items of reasoning and the references of an input, each with its place."""
    for marker, kind in ((REASONING, "reasoning"), (REFERENCE, "item_reference")):
        yield from ((place, item) for place, item in scan(items, marker, _reasoning, more) if item.type == kind)


class _History:
    """The input's items, and what is to be put where."""

    def __init__(self, body: JSONObject, more: int) -> None:
        self.items = body.elements("input")
        self.put = Insertions()
        self._servers = body.get("previous_response_id") is not None or body.get("conversation") is not None
        self._refers = any(REFERENCE in item for item in self.items)
        self._calls: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        self._done: set[str] = set()
        for marker, suffix, places in ((CALL, "_call", self._calls), (OUTPUT, "_call_output", self._outputs)):
            for place, item in scan(self.items, marker, _item, more):
                if item.type.endswith(suffix) and item.call_id:
                    places.setdefault(item.call_id, place)

    def follow(self, followers: Mapping[str, Followers]) -> None:
        """Put behind each item of reasoning what followed it."""
        for place, item in _reasonings(self.items) if followers else ():
            those = next((followers[name] for name in item.names if name in followers), None)
            if those is not None and not self._done.union(self._calls, self._outputs).intersection(those.call_ids):
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
            # Some clients put each output directly after its call: ours may not come before its own.
            self.put.add(next((answer for answer in answers if answer >= place), place), kept.result)

    def _call_place(self, kept: Kept, turn: KeptTurn, own: list[int], answers: list[int]) -> int:
        if not own:
            return answers[0]
        if kept.anchor in turn.client_calls and kept.anchor in self._calls:
            return self._calls[kept.anchor]
        return own[-1] + 1
