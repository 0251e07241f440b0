"""Keep what later requests need from earlier ones: answer ids and tool results. Memory first, then the database.

    turn ends ─▶ remember ─┬─▶ memory                               later request ─▶ find ─┬─▶ memory
                           └─▶ records ─▶ recorder ─▶ database ─▶ (any process) ─▶ reader ─┘

Both expire. Without the results a client's history is still valid, and an answer's id is used soon or never.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec

from aibridge_addon.dialects.history import Followers, Found, KeptTurn, References
from aibridge_addon.dialects.place import NOWHERE, Place, Position
from aibridge_addon.dialects.turns import Result, Text, TurnEnd
from aibridge_addon.interception.scope import Scope
from aibridge_addon.interception.tool_loop import MixedTurn
from aibridge_addon.records import Continuation, DatabaseUnavailable, Stored

RESULTS_KEPT_FOR = timedelta(hours=24)
"""A client returns the results of its own calls within one session."""
ALIASES_KEPT_FOR = timedelta(days=30)
"""As long as OpenAI keeps stored responses."""
MAX_VALUE = 2 * 2**20
"""Bytes. Calls and results of a turn are not kept if they are larger together."""
MAX_ENTRIES = 4096
"""Maximum number of values in memory."""
MAX_BYTES = 64 * 2**20
"""Maximum size of all values in memory. Values that are dropped are still in the database."""
ABSENT_FOR = timedelta(minutes=1)
"""How long a key that the database did not have is not looked up again: a long history names hundreds of calls."""
MAX_ABSENT = 32_768
"""Maximum number of keys remembered as absent."""


class Reader(Protocol):
    """Reads kept values from the database. Never blocks the event loop."""

    async def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        """Return the values under these keys that have not expired.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """

    def close(self) -> None:
        """Close, blocking for no longer than the reader's own limits."""


class _Alias(msgspec.Struct, frozen=True):
    last: str


class StoredTurns(msgspec.Struct, frozen=True):
    """The answers that a provider has stored for one answer of the client."""

    turns: tuple[str, ...]
    """The ids of the turns. The client knows the first."""
    injected: tuple[str, ...]
    """The names of the injected tools."""


class _Elsewhere(msgspec.Struct, frozen=True):
    """A turn that a request may refer to in several ways is stored once."""

    key: str


_elsewhere = msgspec.json.Decoder(_Elsewhere)
_alias = msgspec.json.Decoder(_Alias)
_stored_turns = msgspec.json.Decoder(StoredTurns)
_followers = msgspec.json.Decoder(Followers)
_turn = msgspec.json.Decoder(KeptTurn)


def ignore(_what: object) -> None:
    """Do nothing about a problem."""


class Continuations:
    """Used on one event loop."""

    def __init__(
        self,
        reader: Reader,
        *,
        now: Callable[[], datetime],
        on_too_large: Callable[[int], None] = ignore,
        on_unreadable: Callable[[DatabaseUnavailable], None] = ignore,
    ) -> None:
        """`on_too_large` gets the size in bytes of results that are not kept.

        `on_unreadable` is called when the database cannot be read, once until it can be read again.
        """
        self._reader = reader
        self._now = now
        self._on_too_large = on_too_large
        self._on_unreadable = on_unreadable
        self._known: OrderedDict[str, Stored] = OrderedDict()
        self._known_bytes = 0
        self._absent: OrderedDict[str, datetime] = OrderedDict()
        """Keys that the database did not have, and when to look them up again."""
        self._reachable = True

    def remember(
        self,
        scope: Scope,
        *,
        position: Position = NOWHERE,
        mixed: MixedTurn | None = None,
        alias: tuple[str, str] | None = None,
        hidden: Sequence[tuple[TurnEnd, Sequence[Result]]] = (),
        stored: StoredTurns | None = None,
    ) -> list[Continuation]:
        """Keep what later requests need from an interception. Return the records to emit.

        `position` is that of the interception's answer. `mixed` is the turn that called injected and client tools.
        `alias` is the answer id of the first turn, which the client has, and that of the last turn. `hidden` are turns
        that the client never saw, with their results. `stored` are the turns if the provider has stored them.
        """
        history = scope.dialect.history
        if history is None:
            return []
        kept: list[Continuation] = []
        now = self._now()
        if alias is not None and all(alias) and alias[0] != alias[1]:
            kept.append(_record(scope, scope.key("answer", alias[0]), {"last": alias[1]}, now + ALIASES_KEPT_FOR))
        if stored is not None and stored.turns and all(stored.turns):
            value = msgspec.to_builtins(stored)
            kept.append(_record(scope, scope.key("stored", stored.turns[0]), value, now + ALIASES_KEPT_FOR))
        for end, results in hidden:
            for name, value in history.followers(end.content, results):
                if len(msgspec.json.encode(value)) > MAX_VALUE:  # a provider refuses reasoning that nothing follows
                    value = dict(history.followers(end.content, [_noted(result) for result in results]))[name]
                kept.append(_record(scope, scope.key("reasoning", name), value, now + ALIASES_KEPT_FOR))
        records = [record for record in kept if self._keep(record)]
        if mixed is not None and mixed.results:
            after = position.after(alias[0] if alias is not None else "")
            records += self._keep_turn(scope, mixed, history.call_places(mixed.content, mixed.client_calls, after))
        return records

    def _keep_turn(self, scope: Scope, mixed: MixedTurn, places: Sequence[Place]) -> Iterator[Continuation]:
        history, expires_at = scope.dialect.history, self._now() + RESULTS_KEPT_FOR
        if history is None or not places:
            return
        client_calls = [call_id for call_id in mixed.client_calls if call_id]
        first, *others = [scope.place_key("call", place) for place in places]
        turn = _record(scope, first, history.mixed_turn(client_calls, mixed.results), expires_at)
        if self._keep(turn):
            yield turn
            pointers = (_record(scope, key, {"key": first}, expires_at) for key in others)
            yield from (pointer for pointer in pointers if self._keep(pointer))

    def _keep(self, record: Continuation) -> bool:
        value = msgspec.json.encode(record.value)
        if len(value) > MAX_VALUE:
            self._on_too_large(len(value))
            return False
        self._put(record.key, Stored(value, record.expires_at))
        return True

    def leave_out(self, scope: Scope, found: Found) -> tuple[Found, list[Continuation]]:
        """Keep notes in place of results that were put into a request, because the provider has refused it.

        Returns:
            What to put into the request instead, and the records to emit.
        """
        history, now, records = scope.dialect.history, self._now(), list[Continuation]()
        if history is None:
            return found, records
        turns = {place: history.without_results(turn) for place, turn in found.turns.items()}
        followers = {name: history.followers_without_results(those) for name, those in found.followers.items()}
        for place, turn in turns.items():
            key = self._key_of_turn(scope.place_key("call", place), now)
            records.append(_record(scope, key, _as_value(turn), now + RESULTS_KEPT_FOR))
        for name, those in followers.items():
            records.append(_record(scope, scope.key("reasoning", name), _as_value(those), now + ALIASES_KEPT_FOR))
        kept = [record for record in records if self._keep(record)]
        return replace(found, turns=turns, followers=followers), kept

    def _key_of_turn(self, key: str, now: datetime) -> str:
        """Return the key under which the turn itself is stored, for one that may only point to it."""
        pointer = _maybe(_elsewhere, self._get(key, now))
        return pointer.key if pointer is not None else key

    async def stored_turns(self, scope: Scope, answer_id: str) -> StoredTurns | None:
        """Return the turns of an answer that the provider has stored; None if it has one turn, all of it visible."""
        key = scope.key("stored", answer_id)
        return _maybe(_stored_turns, (await self._stored((key,))).get(key))

    async def find(self, scope: Scope, references: References) -> Found:
        """Look up what is kept under these ids and places."""
        if not references:
            return Found()
        answers = {scope.key("answer", name): name for name in sorted(references.ids)}
        calls = {scope.place_key("call", place): place for place in sorted(references.calls)}
        reasoning = {scope.key("reasoning", name): name for name in sorted(references.reasoning)}
        stored = await self._stored((*answers, *calls, *reasoning))
        aliases = {name: _maybe(_alias, stored.get(key)) for key, name in answers.items()}
        turns = await self._turns({place: stored[key] for key, place in calls.items() if key in stored})
        followers = {name: _maybe(_followers, stored.get(key)) for key, name in reasoning.items()}
        return Found(
            {name: alias.last for name, alias in aliases.items() if alias is not None},
            turns,
            {name: those for name, those in followers.items() if those is not None},
        )

    async def _turns(self, stored: Mapping[Place, Stored]) -> dict[Place, KeptTurn]:
        pointers = {place: pointer for place, value in stored.items() if (pointer := _maybe(_elsewhere, value))}
        elsewhere = await self._stored([pointer.key for pointer in pointers.values()])
        values = {**stored, **{place: elsewhere.get(pointer.key) for place, pointer in pointers.items()}}
        turns = {place: _maybe(_turn, value) for place, value in values.items()}
        return {place: turn for place, turn in turns.items() if turn is not None}

    async def _stored(self, keys: Sequence[str]) -> Mapping[str, Stored]:
        now = self._now()
        found = {key: stored for key in keys if (stored := self._get(key, now)) is not None}
        unknown = [key for key in keys if key not in found and not self._is_absent(key, now)]
        if not unknown:
            return found
        try:
            read = await self._reader.read(unknown, now)
        except DatabaseUnavailable as e:
            if self._reachable:
                self._on_unreadable(e)
            self._reachable = False
            return found
        self._reachable = True
        for key, stored in read.items():
            self._put(key, stored)
        self._note_absent([key for key in unknown if key not in read], now + ABSENT_FOR)
        return {**found, **read}

    def close(self) -> None:
        """Close, blocking for no longer than the reader's own limits."""
        self._reader.close()

    # --- memory -----------------------------------------------------------------------------------------------

    def _get(self, key: str, now: datetime) -> Stored | None:
        stored = self._known.get(key)
        if stored is None:
            return None
        if stored.expires_at <= now:
            self._forget(key)
            return None
        self._known.move_to_end(key)
        return stored

    def _put(self, key: str, stored: Stored) -> None:
        self._forget(key)
        self._absent.pop(key, None)
        self._known[key] = stored
        self._known_bytes += len(stored.value)
        while len(self._known) > MAX_ENTRIES or self._known_bytes > MAX_BYTES:
            self._forget(next(iter(self._known)))

    def _forget(self, key: str) -> None:
        stored = self._known.pop(key, None)
        if stored is not None:
            self._known_bytes -= len(stored.value)

    def _is_absent(self, key: str, now: datetime) -> bool:
        until = self._absent.get(key)
        return until is not None and now < until

    def _note_absent(self, keys: Collection[str], until: datetime) -> None:
        for key in keys:
            self._absent[key] = until
            self._absent.move_to_end(key)
        while len(self._absent) > MAX_ABSENT:
            self._absent.popitem(last=False)


def _record(scope: Scope, key: str, value: Mapping[str, Any], expires_at: datetime) -> Continuation:
    return Continuation(key, value, expires_at, initiator_id=scope.initiator_id)


def _as_value(struct: msgspec.Struct) -> Mapping[str, Any]:
    value = msgspec.json.decode(msgspec.json.encode(struct))
    assert isinstance(value, dict)
    return value


def _noted(result: Result) -> Result:
    return replace(result, parts=(Text("[The results were too large to be kept]"),))


def _maybe[T](decoder: msgspec.json.Decoder[T], stored: Stored | None) -> T | None:
    """Decode a stored value; None if another version wrote it in another form."""
    try:
        return decoder.decode(stored.value) if stored is not None else None
    except msgspec.MsgspecError:
        return None
