"""Tokens of the bridge in a database, as `aibridge tokens` makes them."""

from __future__ import annotations

import itertools
import secrets
import uuid
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from aibridge_addon.credentials.tokens import RANDOM_BYTES, Presented, make_token, presented, token_digest
from aibridge_addon.recording.tokens import TokenStore
from aibridge_addon.records import utc_now
from tests.support.databases import Database

_numbers = itertools.count()


@dataclass(frozen=True)
class Made:
    """A token and its row's id."""

    token: str
    id: str

    @property
    def presented(self) -> Presented:
        return presented(self.token)


def unknown_token() -> str:
    """Return a token that no database has."""
    return make_token(next(_numbers).to_bytes(RANDOM_BYTES))


def add_token(
    store: TokenStore,
    actor: str = "alice",
    *,
    groups: Iterable[str] = (),
    created_at: datetime | None = None,
    expires_at: datetime | None = None,
) -> Made:
    made = Made(make_token(secrets.token_bytes(RANDOM_BYTES)), str(uuid.uuid4()))
    row = {
        "id": made.id,
        "actor": actor,
        "groups": list(groups),
        "hint": "aib_...",
        "note": None,
        "created_at": created_at or utc_now(),
        "expires_at": expires_at,
    }
    store.add(token_digest(made.token), row, secrets.token_bytes(RANDOM_BYTES))
    return made


def made_in(
    database: Database, actor: str = "alice", *, groups: Iterable[str] = (), expires_at: datetime | None = None
) -> Made:
    """Make a token in a database, whose tables are created where they are missing."""
    with closing(database.store()) as store:
        store.open()
    with closing(database.tokens()) as tokens:
        return add_token(tokens, actor, groups=groups, expires_at=expires_at)


def revoke(database: Database, made: Made) -> None:
    with closing(database.tokens()) as tokens:
        assert tokens.revoke(made.id, utc_now()) is not None
