"""Record the result of earlier work once, however often, and on whatever process, it is fetched.

    POST /v1/responses, background ─▶ the interception stays open, and `Pending` is stored under its response's id
    GET  /v1/responses/{id} ─▶ Pending found ─▶ the end is read ─▶ claim the key ─┬─ first: emit the records
    GET  …/batches/{id}/results ─▶ read ─────────────────────────▶ claim the key ─┴─ claimed before: drop them

A key is claimed in the database, which all processes share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from aibridge_addon.dialects.base import UNREAD, RequestReading
from aibridge_addon.dialects.place import NOWHERE, Position
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.routing import Route
from aibridge_addon.records import Continuation, DatabaseUnavailable, Emit, Record, Stored

PENDING_FOR = timedelta(days=2)
"""A background response whose end is not read within this time has failed."""
MAX_CONVERSATION = 256
"""Characters. A longer id of a conversation is not kept."""
CLAIMED_FOR = timedelta(days=60)
"""Longer than providers keep results: Anthropic 29 days, OpenAI 30 days."""


class Ledger(Protocol):
    """What is stored under keys, in the database that all processes share. Never blocks the event loop."""

    async def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        """Return the values under these keys that have not expired. Raises DatabaseUnavailable."""

    async def claim(self, key: str, now: datetime, expires_at: datetime) -> bool:
        """Take a key. Returns False if it was taken before. Raises DatabaseUnavailable."""

    def close(self) -> None:
        """Close, blocking for no longer than the ledger's own limits."""


class Pending(msgspec.Struct, frozen=True):
    """An interception whose end a later request will bring."""

    background: str
    """The interception's id."""
    model: str
    time_to_first_byte_ms: int | None
    session: str = ""
    agent: str = ""
    position: Position = NOWHERE
    """What stands before the answer, for the threads that continue from it."""
    requested: dict[str, str] = msgspec.field(default_factory=dict)
    """What the request asked for, and the hosted tools that it offered: they decide the price of the end."""
    hosted_tools: tuple[str, ...] = ()

    @property
    def request(self) -> RequestReading:
        """What of the request is needed to read the end."""
        return replace(
            UNREAD,
            model=self.model,
            background=True,
            position=self.position,
            requested=self.requested,
            hosted_tools=self.hosted_tools,
        )


_pending = msgspec.json.Decoder(Pending)


def result_key(kind: str, route: Route, owner: str, result_id: str) -> str:
    """Return the key for a result. It contains nothing that can be read."""
    parts = (kind, route.provider.name, owner, result_id)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def pending_record(exchange: Exchange, key: str) -> Continuation:
    """Return the record that keeps a background response for the request that will bring its end."""
    position = exchange.request.position
    if len(position.conversation) > MAX_CONVERSATION:
        position = replace(position, conversation="")
    pending = Pending(
        background=exchange.id,
        model=exchange.request.model,
        time_to_first_byte_ms=exchange.time_to_first_byte_ms,
        session=exchange.scope.session,
        agent=exchange.scope.agent,
        position=position,
        requested=dict(exchange.request.requested),
        hosted_tools=exchange.request.hosted_tools,
    )
    expires_at = exchange.now() + PENDING_FOR
    return Continuation(key, msgspec.to_builtins(pending), expires_at, exchange.id, exchange.scope.initiator_id)


def read_pending(stored: Stored | None) -> Pending | None:
    """Return what was kept, or None if there is nothing, or another version wrote it in another form."""
    try:
        return _pending.decode(stored.value) if stored is not None else None
    except msgspec.MsgspecError:
        return None


@dataclass(slots=True)
class Once:
    """The records of one exchange, held until it is known that they are the first of its result."""

    key: str
    ledger: Ledger
    emit: Emit
    now: Callable[[], datetime]
    on_unavailable: Callable[[DatabaseUnavailable], None]
    records: list[Record] = field(default_factory=list)
    exchange: Exchange | None = None
    emitted: bool = False

    async def settle(self) -> None:
        """Emit the records if the result was read to its end and was not recorded before."""
        records = list(self.records)
        self.records.clear()
        if not records or not self._is_result:
            return
        now = self.now()
        try:
            first = await self.ledger.claim(self.key, now, now + CLAIMED_FOR)
        except DatabaseUnavailable as e:
            # The claim is written with the rows. Until then, another process may record the same result.
            self.on_unavailable(e)
            self.emit(Continuation(self.key, {}, now + CLAIMED_FOR))
            first = True
        if first:
            self.emitted = True
            for record in records:
                self.emit(record)

    @property
    def _is_result(self) -> bool:
        tap = self.exchange.tap if self.exchange is not None else None
        return tap is not None and tap.reader.reading.ended and not tap.reader.reading.foreign
