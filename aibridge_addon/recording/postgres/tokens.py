"""Tokens of the bridge in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar

from psycopg.types.json import Json

from aibridge_addon.credentials.tokens import Grant, stored_hash
from aibridge_addon.recording.postgres.connection import Connection
from aibridge_addon.recording.postgres.reader import PostgresConnection
from aibridge_addon.recording.tokens import USE_NOTED

KEY = "select key from aibridge_token_key where id = 1"
MAKE_KEY = "insert into aibridge_token_key (id, key) values (1, %s) on conflict (id) do nothing"
FIND = """
select hash, id::text, actor, groups, expires_at, revoked_at from aibridge_tokens where hash = any(%s)
"""
ADD = """
insert into aibridge_tokens (id, actor, groups, hash, hint, note, created_at, expires_at)
values (%(id)s, %(actor)s, %(groups)s, %(hash)s, %(hint)s, %(note)s, %(created_at)s, %(expires_at)s)
"""
NOTE_USE = """
update aibridge_tokens set last_used_at = %(now)s where id in (
    select id from aibridge_tokens
    where id = any(%(ids)s::uuid[]) and (last_used_at is null or last_used_at <= %(before)s)
    for update skip locked
)
"""
"""A row that is locked is left out: another process notes the same."""
REVOKE = """
update aibridge_tokens set revoked_at = coalesce(revoked_at, %(now)s) where id::text = %(id)s returning revoked_at
"""


class PostgresTokens(PostgresConnection):
    """Implements `tokens.TokenStore` for PostgreSQL."""

    SETTINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"statement_timeout": "1s"})

    def find(self, digests: Sequence[str]) -> Mapping[str, Grant]:
        return self.use(lambda connection: _find(connection, digests))

    def note_use(self, ids: Sequence[str], now: datetime) -> None:
        values = {"ids": list(ids), "now": now, "before": now - USE_NOTED}
        self.use(lambda connection: connection.execute(NOTE_USE, values))

    def add(self, digest: str, row: Mapping[str, Any], key: bytes) -> None:
        self.use(lambda connection: _add(connection, digest, row, key))

    def revoke(self, id: str, now: datetime) -> datetime | None:
        found = self.use(lambda connection: connection.execute(REVOKE, {"id": id, "now": now}).fetchone())
        return None if found is None else found[0]


def _find(connection: Connection, digests: Sequence[str]) -> Mapping[str, Grant]:
    key = connection.execute(KEY).fetchone()
    if key is None:
        return {}
    digest_of = {stored_hash(bytes.fromhex(key[0]), digest): digest for digest in digests}
    return {
        digest_of[hash]: Grant(id, actor, tuple(groups), expires_at, revoked_at)
        for hash, id, actor, groups, expires_at, revoked_at in connection.execute(FIND, [list(digest_of)])
    }


def _add(connection: Connection, digest: str, row: Mapping[str, Any], key: bytes) -> None:
    connection.execute(MAKE_KEY, [key.hex()])
    (stored,) = connection.execute(KEY).fetchone() or ("",)
    hash = stored_hash(bytes.fromhex(stored), digest)
    connection.execute(ADD, {**row, "groups": Json(list(row["groups"])), "hash": hash})
