"""Restore hidden calls and their results in the history that a client sends. Sans-io.

In a mixed turn the model called injected tools and tools of the client. The client received only its own calls. The
injected calls were run, and their results are kept. Every later request whose history contains the client's calls at
the same place (`Place`) gets the injected calls and their results again, each where the model made it:

    history ─▶ references ─▶ (turns kept for these places) ─▶ completed ─▶ the complete request, or None if unchanged

A request is parsed once for both steps. It can have megabytes, and parsing blocks the event loop.

If a turn contains injected calls only, the client sees the model's reasoning and sends it back. OpenAI refuses
reasoning without the item that followed it, so the injected calls and their results are restored after it. For
Anthropic they are restored after the thinking. Otherwise the thoughts of several turns would seem to be one turn's.

If the kept turns are lost, the history is not changed. It is still valid, because calls and results are always added in
pairs. The same history and kept turns produce the same bytes, which prompt caches require.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from aibridge_addon.dialects.place import ANY, After, Place, Position, call_digest
from aibridge_addon.dialects.turns import LEFT_OUT, Call, Result, Text
from aibridge_addon.wire.json_object import JSONObject, array, encode
from aibridge_addon.wire.json_values import as_dict

MAX_ELEMENTS = 1000
"""Maximum number of messages or items with calls, and of reasoning items, that are searched, from the end.

In a longer history the oldest calls are no longer restored. The history then changes with every request, which defeats
prompt caches, and OpenAI refuses the incomplete reasoning. Agent sessions have hundreds; each costs some microseconds.
"""
MAX_CALLS = 2 * MAX_ELEMENTS
MAX_OPENING = 50
"""Maximum number of messages or items that the opening of a conversation is read from."""


class Kept(msgspec.Struct, frozen=True, gc=False):
    """An injected call and its result, in the form that the history contains."""

    id: str
    anchor: str | None
    """Id of the next client call after this one. None: no client call follows."""
    call: msgspec.Raw
    result: msgspec.Raw


class KeptTurn(msgspec.Struct, frozen=True, gc=False):
    client_calls: tuple[str, ...]
    """Ids of the client's calls in the same turn, at least one."""
    kept: tuple[Kept, ...]


class Followers(msgspec.Struct, frozen=True, gc=False):
    """Injected calls that followed an item of reasoning, and then their results."""

    call_ids: tuple[str, ...]
    items: tuple[msgspec.Raw, ...]
    visible: int = 0
    """Number of visible blocks between the reasoning and the calls (Messages)."""

    @property
    def calls(self) -> tuple[msgspec.Raw, ...]:
        return self.items[: len(self.call_ids)]

    @property
    def results(self) -> tuple[msgspec.Raw, ...]:
        return self.items[len(self.call_ids) :]


@dataclass(frozen=True, slots=True)
class References:
    """Ids and places in a request that may identify kept turns."""

    ids: frozenset[str] = frozenset()
    """Ids of answers."""
    calls: frozenset[Place] = frozenset()
    """Places of the client's calls."""
    reasoning: frozenset[str] = frozenset()
    """Names of reasoning items: the id or the encrypted content, because some clients send back only one of them.

    The name of a thinking block is its signature or its data.
    """

    def __bool__(self) -> bool:
        return bool(self.ids or self.calls or self.reasoning)


@dataclass(frozen=True, slots=True)
class Found:
    """Kept turns that match a request's references."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """The provider's id of the last turn, by the id of the answer that the client received."""
    turns: Mapping[Place, KeptTurn] = field(default_factory=dict)
    """By the place of one of the client's calls."""
    followers: Mapping[str, Followers] = field(default_factory=dict)
    """By the name of the reasoning item."""

    def __bool__(self) -> bool:
        return bool(self.aliases or self.turns or self.followers)


_anything: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class RequestHistory(ABC):
    """The history in one request."""

    position: Position
    """Of the answer to the request."""
    results_alone: bool
    """The request has results of calls with nothing before them."""

    @abstractmethod
    def calls(self) -> Iterable[tuple[Place, bytes]]:
        """Yield the places of calls, the last one first, each with the element of the history that has the call."""

    @abstractmethod
    def references(self) -> References:
        """Return the ids and places that the request contains, up to a limit. Never raises."""

    @abstractmethod
    def completed(self, found: Found) -> bytes | None:
        """Return the request with the found calls and results, or None if nothing changes.

        Everything else stays verbatim and in order.
        """


class History(ABC):
    """Reads and completes the history in a dialect's requests."""

    @abstractmethod
    def read(self, body: JSONObject, *, whole: bool = False) -> RequestHistory:
        """Read a request. Never raises.

        `whole`: system prompts and results of tools stand before an answer, too. For requests without a session.
        """

    @abstractmethod
    def result(self, result: Result) -> dict[str, Any]:
        """Return a result in the form that the history contains."""

    def without_results(self, turn: KeptTurn) -> KeptTurn:
        """Return a kept turn with notes in place of its results. If it has only notes, it becomes empty."""
        kept = tuple(msgspec.structs.replace(kept, result=self._note(kept.id, kept.call)) for kept in turn.kept)
        has_notes = all(bytes(new.result) == bytes(old.result) for new, old in zip(kept, turn.kept, strict=True))
        return KeptTurn(turn.client_calls, () if has_notes else kept)

    def followers_without_results(self, those: Followers) -> Followers:
        """Return hidden calls with notes in place of their results. Reasoning must be followed by something."""
        notes = tuple(map(self._note, those.call_ids, those.calls))
        return msgspec.structs.replace(those, items=(*those.calls, *notes))

    def _note(self, call_id: str, call: msgspec.Raw) -> msgspec.Raw:
        item = as_dict(maybe_decode(bytes(call), _anything))
        return msgspec.Raw(encode(self.result(Result(Call(call_id, "", None, item), (Text(LEFT_OUT),)))))

    def followers(
        self, content: Sequence[Mapping[str, Any]], results: Sequence[Result]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield, for each reasoning item of a hidden turn, its name and an object that decodes to `Followers`."""
        yield from ()

    @abstractmethod
    def opening(self, body: JSONObject) -> Position:
        """Return the position of an answer by the opening of its conversation. It needs less time than `read`.

        The opening is what the user said before the first answer.
        """

    def held(self, _body: JSONObject) -> After | None:
        """Return what the request continues if the provider has its history."""
        return None

    @abstractmethod
    def maybe_call(self, element: dict[str, Any], call_id: str) -> tuple[str, Any] | None:
        """Return name and arguments of the model's call with this id, if the element has it."""

    @property
    @abstractmethod
    def member(self) -> str:
        """The member of a request that contains the history."""

    def place_by_opening(self, body: JSONObject, opening: Position, call_id: str) -> tuple[Place, ...]:
        """Return the place of the call whose result is at the end. Empty: the request has nothing before it."""
        if (held := self.held(body)) is not None:
            return (Place(held, call_id),)
        for element in islice(body.elements_backwards(self.member), MAX_OPENING):
            if (call := self.maybe_call(as_dict(element), call_id)) is not None:
                return (Place(opening.digest or ANY, call_id, call_digest(*call)),)
        return () if opening.digest is None else (Place(opening.digest, call_id),)

    def places_by_trail(self, body: JSONObject, history: RequestHistory, call_ids: Sequence[str]) -> tuple[Place, ...]:
        """Return the places of the calls whose results are at the end, the last one first.

        Calls of one answer are at one place. If a client puts each result directly after its call, each call may be
        an answer of its own.
        """
        if (held := self.held(body)) is not None:
            return (Place(held, call_ids[-1]),)
        if history.results_alone:
            return ()
        places: dict[After, Place] = {}
        left = list(call_ids)
        for place, element in history.calls():
            if place.call_id not in left:
                continue
            left.remove(place.call_id)
            call = self.maybe_call(as_dict(maybe_decode(element, _anything)), place.call_id)
            if call is not None:
                places.setdefault(place.after, Place(place.after, place.call_id, call_digest(*call)))
            if not left:
                break
        return tuple(places.values()) or (Place(history.position.digest or ANY, call_ids[-1]),)

    @abstractmethod
    def call_places(
        self, content: Sequence[Mapping[str, Any]], client_calls: Sequence[str], after: Sequence[After]
    ) -> list[Place]:
        """Return the places at which a later request may have the first of the client's calls in a turn.

        `content` is the turn's, `after` what stands before its answer.
        """

    def mixed_turn(self, client_calls: Sequence[str], results: Sequence[Result]) -> dict[str, Any]:
        """Return a mixed turn as a JSON object that decodes to a `KeptTurn`."""
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


def opening_of(parts: Iterable[str | bytes]) -> After | None:
    """Return the digest of what the user said: texts, and digests of attachments. None if a person said nothing."""
    said = [part.strip() if isinstance(part, str) else part for part in parts]
    return ("opening", hashlib.sha256(encode(said)).hexdigest()) if said else None


def maybe_decode[T](element: bytes, decoder: msgspec.json.Decoder[T]) -> T | None:
    try:
        return decoder.decode(element)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def absent(turn: KeptTurn, present: Collection[str], done: set[str]) -> list[Kept]:
    """Return the calls of a turn that are not in the history yet, and add their ids to `done`.

    Both belong to the one answer that is completed. Another answer may have calls with the same ids.
    """
    left = [kept for kept in turn.kept if kept.id not in present and kept.id not in done]
    done.update(kept.id for kept in left)
    return left


class Insertions:
    """Elements to insert into an array, by the index of the element that follows them."""

    def __init__(self) -> None:
        self._at: dict[int, list[bytes]] = {}

    def add(self, place: int, element: bytes | msgspec.Raw) -> None:
        self._at.setdefault(place, []).append(bytes(element))

    def __bool__(self) -> bool:
        return bool(self._at)

    def at(self, place: int) -> Sequence[bytes]:
        return self._at.get(place, ())

    def within(self, elements: Sequence[bytes], begin: int, end: int) -> Iterator[bytes]:
        """Yield the elements from `begin` up to `end`, each after its insertions."""
        for place in range(begin, end):
            yield from self.at(place)
            yield elements[place]

    def into(self, elements: Sequence[bytes]) -> bytes:
        """Return the JSON of the array with all insertions."""
        return array([*self.within(elements, 0, len(elements)), *self.at(len(elements))])
