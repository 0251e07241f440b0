"""Put calls and results that the client has not seen back into the history that it sends. Sans-io.

In a mixed turn the model called tools of ours and tools of the client. The client got its calls only; ours were run,
and their results are kept. Every later request whose history has the client's calls gets our calls and results again,
each where the model had put it:

    history ─▶ references ─▶ (what is kept under these ids) ─▶ completed ─▶ the whole one, or None: nothing is kept

A request is read once, for both: of a long session it has megabytes, and nothing else runs in the meantime.

In a turn of nothing but calls of ours, the model's reasoning is visible, and the client sends it back. OpenAI refuses
reasoning without the item that followed it, so the calls that did are put behind it again, with their results. So they
are behind Anthropic's thinking, or the thoughts of several turns would be those of one.

Without what was kept nothing is changed: calls and results always come and go in pairs, so the history is valid all the
same. The same history and the same kept turns make the same bytes, for prompt caches depend on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from aibridge_addon.dialects.turns import Result
from aibridge_addon.wire.json_object import JSONObject, array

MAX_ELEMENTS = 1000
"""Messages or items with calls, and items of reasoning, that are looked at, from the end.

Beyond it a history changes from request to request, which no prompt cache survives, and reasoning lacks what followed
it, which OpenAI refuses. Sessions of agents have hundreds; each costs some microseconds.
"""
MAX_CALL_IDS = 2 * MAX_ELEMENTS


class Kept(msgspec.Struct, frozen=True, gc=False):
    """A call of ours and its result, as they stand in the history."""

    id: str
    anchor: str | None
    """The client's call before which ours stood; None: after the last one."""
    call: msgspec.Raw
    result: msgspec.Raw


class KeptTurn(msgspec.Struct, frozen=True, gc=False):
    client_calls: tuple[str, ...]
    """Ids of the client's calls in the same turn, at least one."""
    kept: tuple[Kept, ...]


class Followers(msgspec.Struct, frozen=True, gc=False):
    """What followed an item of reasoning: our calls, and then their results."""

    call_ids: tuple[str, ...]
    items: tuple[msgspec.Raw, ...]
    visible: int = 0
    """Blocks that stand between the reasoning and the calls (Messages)."""

    @property
    def calls(self) -> tuple[msgspec.Raw, ...]:
        return self.items[: len(self.call_ids)]

    @property
    def results(self) -> tuple[msgspec.Raw, ...]:
        return self.items[len(self.call_ids) :]


@dataclass(frozen=True, slots=True)
class References:
    """Ids in a request under which something may be kept."""

    ids: frozenset[str] = frozenset()
    """Of answers."""
    call_ids: frozenset[str] = frozenset()
    """Of the client's calls."""
    reasoning: frozenset[str] = frozenset()
    """Names of items of reasoning: an id, or the encrypted content, for some clients send back only the one.

    Of blocks of thinking: the signature, or the data.
    """

    def __bool__(self) -> bool:
        return bool(self.ids or self.call_ids or self.reasoning)


@dataclass(frozen=True, slots=True)
class Found:
    """What is kept under a request's references."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """By the id of an answer that the client knows, the one under which the provider goes on."""
    turns: Sequence[KeptTurn] = ()
    """In an order that depends on their ids only."""
    followers: Mapping[str, Followers] = field(default_factory=dict)
    """By the name of the item of reasoning."""

    def __bool__(self) -> bool:
        return bool(self.aliases or self.turns or self.followers)


class RequestHistory(ABC):
    """The history in one request, which may go on after an answer of several turns, or after a mixed one."""

    @abstractmethod
    def references(self) -> References:
        """The ids that the request names. Bounded, and never raises."""

    @abstractmethod
    def completed(self, found: Found) -> bytes | None:
        """The request with what was found; None if nothing is to be changed. All else stays verbatim, in its place."""


class History(ABC):
    """How a dialect's requests carry the history, and calls of ours in it."""

    @abstractmethod
    def read(self, body: JSONObject) -> RequestHistory:
        """Read a request. Never raises."""

    @abstractmethod
    def result(self, result: Result) -> dict[str, Any]:
        """Write a result as it stands in the history."""

    def followers(
        self, content: Sequence[Mapping[str, Any]], results: Sequence[Result]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """What followed each item of reasoning of a hidden turn: the item's name, and what decodes to `Followers`."""
        yield from ()

    def mixed_turn(self, client_calls: Sequence[str], results: Sequence[Result]) -> dict[str, Any]:
        """A mixed turn as a JSON object, which decodes to a `KeptTurn`."""
        return {
            "client_calls": list(client_calls),
            "kept": [
                {
                    "id": result.call.id,
                    "anchor": result.call.anchor,
                    "call": result.call.item,
                    "result": self.result(result),
                }
                for result in results
            ],
        }


def scan[T](elements: Sequence[bytes], decoder: msgspec.json.Decoder[T], *markers: bytes) -> Iterator[tuple[int, T]]:
    """The last elements that hold one of the markers, last first, each with its place.

    One that is not of the decoder's form is left out.
    """
    backwards = range(len(elements) - 1, -1, -1)
    marked = (place for place in backwards if any(marker in elements[place] for marker in markers))
    for place in islice(marked, MAX_ELEMENTS):
        element = maybe_decode(elements[place], decoder)
        if element is not None:
            yield place, element


def maybe_decode[T](element: bytes, decoder: msgspec.json.Decoder[T]) -> T | None:
    try:
        return decoder.decode(element)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def pieces(turns: Sequence[KeptTurn]) -> int:
    return sum(len(turn.kept) for turn in turns)


def absent(turn: KeptTurn, present: Collection[str], done: set[str]) -> list[Kept]:
    """What of a turn is to be put in: nothing twice."""
    left = [kept for kept in turn.kept if kept.id not in present and kept.id not in done]
    done.update(kept.id for kept in left)
    return left


class Insertions:
    """Further elements for an array, each before the element at a place."""

    def __init__(self) -> None:
        self._at: dict[int, list[bytes]] = {}

    def add(self, place: int, element: bytes | msgspec.Raw) -> None:
        self._at.setdefault(place, []).append(bytes(element))

    def __bool__(self) -> bool:
        return bool(self._at)

    def at(self, place: int) -> Sequence[bytes]:
        return self._at.get(place, ())

    def within(self, elements: Sequence[bytes], begin: int, end: int) -> Iterator[bytes]:
        """The elements from `begin` up to `end`, and what is put before each."""
        for place in range(begin, end):
            yield from self.at(place)
            yield elements[place]

    def into(self, elements: Sequence[bytes]) -> bytes:
        """The array's JSON."""
        return array([*self.within(elements, 0, len(elements)), *self.at(len(elements))])
