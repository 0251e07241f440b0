"""Keep what later requests need of earlier ones: ids of answers, and results of mixed turns. Memory, then database.

    turn ends ─▶ remember ─┬─▶ memory                               later request ─▶ find ─┬─▶ memory
                           └─▶ records ─▶ recorder ─▶ database ─▶ (any process) ─▶ reader ─┘

Both expire: without results the history is valid all the same, and an answer's id is used soon or never.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.history import Followers, Found, KeptTurn, References
from aibridge_addon.dialects.turns import Result, Text, TurnEnd
from aibridge_addon.interception.tool_loop import Held
from aibridge_addon.records import Continuation, DatabaseUnavailable, Stored
from aibridge_addon.wire.json_object import JSONObject

logger = logging.getLogger(__name__)

HELD_FOR = timedelta(hours=24)
ALIAS_FOR = timedelta(days=30)
"""As long as OpenAI keeps the responses that ids name."""
MAX_VALUE = 2 * 2**20
"""Bytes of a turn's calls and results, above which they are not kept."""
MAX_ENTRIES = 4096
MAX_BYTES = 64 * 2**20
"""Of values in memory; what falls out is in the database."""
ABSENT_FOR = timedelta(minutes=1)
"""For so long the database is not asked again for what it did not have: a long history names hundreds of calls."""
MAX_ABSENT = 32_768


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose turn it was. No other actor, provider or dialect ever reaches what is kept of it."""

    provider_name: str
    initiator_id: str
    dialect: Dialect

    def key(self, kind: str, name: str) -> str:
        parts = (self.provider_name, self.initiator_id, self.dialect.name, kind, name)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


class Reader(Protocol):
    """Reads what was written to the database. Never blocks the event loop."""

    async def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        """What there is under these keys and has not expired. Raises DatabaseUnavailable."""

    def close(self) -> None:
        """Close, blocking for no longer than the reader's own limits."""


class _Alias(msgspec.Struct, frozen=True):
    last: str


_alias = msgspec.json.Decoder(_Alias)
_followers = msgspec.json.Decoder(Followers)
_turn = msgspec.json.Decoder(KeptTurn)


class Continuations:
    """Used on one event loop."""

    def __init__(self, reader: Reader, *, now: Callable[[], datetime]) -> None:
        self._reader = reader
        self._now = now
        self._known: OrderedDict[str, Stored] = OrderedDict()
        self._known_bytes = 0
        self._absent: OrderedDict[str, datetime] = OrderedDict()
        """Keys that the database did not have, each with the time from which it is asked again."""
        self._reachable = True

    def remember(
        self,
        scope: Scope,
        *,
        held: Held | None = None,
        alias: tuple[str, str] | None = None,
        hidden: Sequence[tuple[TurnEnd, Sequence[Result]]] = (),
    ) -> list[Continuation]:
        """Keep what an interception leaves for later requests; returns the records to emit.

        `alias`: ids of the first turn's answer, which the client knows, and of the last turn's. `hidden`: turns of
        whose calls it knows nothing, with the results.
        """
        history = scope.dialect.history
        if history is None:
            return []
        kept: list[Continuation] = []
        now = self._now()
        if alias is not None and all(alias) and alias[0] != alias[1]:
            kept.append(Continuation(scope.key("answer", alias[0]), {"last": alias[1]}, now + ALIAS_FOR))
        client_calls = [call_id for call_id in held.client_calls if call_id] if held is not None else []
        if held is not None and client_calls and held.results:
            value = history.mixed_turn(client_calls, held.results)
            kept.append(Continuation(scope.key("call", client_calls[0]), value, now + HELD_FOR))
        for end, results in hidden:
            for name, value in history.followers(end.content, results):
                if len(msgspec.json.encode(value)) > MAX_VALUE:  # reasoning that nothing follows would be refused
                    value = dict(history.followers(end.content, [_noted(result) for result in results]))[name]
                kept.append(Continuation(scope.key("reasoning", name), value, now + ALIAS_FOR))
        return [record for record in kept if self._keep(record)]

    def _keep(self, record: Continuation) -> bool:
        value = msgspec.json.encode(record.value)
        if len(value) > MAX_VALUE:
            logger.warning("aibridge: results of %d bytes are too large to be kept for the next request", len(value))
            return False
        self._put(record.key, Stored(value, record.expires_at))
        return True

    async def completed(self, scope: Scope, body: JSONObject) -> bytes | None:
        """The request, completed with what is kept for it; None if it stays as it is."""
        if scope.dialect.history is None:
            return None
        request = scope.dialect.history.read(body)
        found = await self.find(scope, request.references())
        return request.completed(found) if found else None

    async def find(self, scope: Scope, references: References) -> Found:
        """What is kept under these ids."""
        if not references:
            return Found()
        answers = {scope.key("answer", name): name for name in sorted(references.ids)}
        calls = {scope.key("call", name): name for name in sorted(references.call_ids)}
        reasoning = {scope.key("reasoning", name): name for name in sorted(references.reasoning)}
        stored = await self._stored((*answers, *calls, *reasoning))
        aliases = {name: _maybe(_alias, stored.get(key)) for key, name in answers.items()}
        turns = [_maybe(_turn, stored.get(key)) for key in calls]
        followers = {name: _maybe(_followers, stored.get(key)) for key, name in reasoning.items()}
        return Found(
            {name: alias.last for name, alias in aliases.items() if alias is not None},
            [turn for turn in turns if turn is not None],
            {name: those for name, those in followers.items() if those is not None},
        )

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
                logger.error("aibridge: what earlier answers left cannot be read, going on without it: %s", e)
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


def _noted(result: Result) -> Result:
    return replace(result, parts=(Text("[The results were too large to be kept]"),))


def _maybe[T](decoder: msgspec.json.Decoder[T], stored: Stored | None) -> T | None:
    """A stored value; None where a later version has written it in another form."""
    try:
        return decoder.decode(stored.value) if stored is not None else None
    except msgspec.MsgspecError:
        return None
