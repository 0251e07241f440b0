"""Tokens of the bridge in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal

from aibridge_addon.credentials.tokens import Grant, stored_hash
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite.reader import SqliteConnection
from aibridge_addon.recording.tokens import USE_NOTED

KEY = "select key from aibridge_token_key where id = 1"
MAKE_KEY = "insert into aibridge_token_key (id, key) values (1, ?) on conflict (id) do nothing"
FIND = """
select hash, id, actor, "groups", expires_at, revoked_at from aibridge_tokens
where hash in (select value from json_each(?))
"""
ADD = """
insert into aibridge_tokens (id, actor, "groups", hash, hint, note, created_at, expires_at)
values (:id, :actor, :groups, :hash, :hint, :note, :created_at, :expires_at)
"""
NOTE_USE = """
update aibridge_tokens set last_used_at = :now
where id in (select value from json_each(:ids)) and (last_used_at is null or last_used_at <= :before)
"""
REVOKE = "update aibridge_tokens set revoked_at = coalesce(revoked_at, :now) where id = :id returning revoked_at"


class SqliteTokens(SqliteConnection):
    """Implements `tokens.TokenStore` for SQLite."""

    MODE: ClassVar[Literal["ro", "rw"]] = "rw"

    def find(self, digests: Sequence[str]) -> Mapping[str, Grant]:
        return self.use(lambda db: _find(db, digests))

    def note_use(self, ids: Sequence[str], now: datetime) -> None:
        values = {"ids": json.dumps(list(ids)), "now": timestamp(now), "before": timestamp(now - USE_NOTED)}
        self.use(lambda db: db.execute(NOTE_USE, values))

    def add(self, digest: str, row: Mapping[str, Any], key: bytes) -> None:
        self.use(lambda db: _add(db, digest, row, key))

    def revoke(self, id: str, now: datetime) -> datetime | None:
        found = self.use(lambda db: db.execute(REVOKE, {"id": id, "now": timestamp(now)}).fetchall())
        return datetime.fromisoformat(found[0][0]) if found else None


def _find(db: sqlite3.Connection, digests: Sequence[str]) -> Mapping[str, Grant]:
    key = db.execute(KEY).fetchone()
    if key is None:
        return {}
    digest_of = {stored_hash(bytes.fromhex(key[0]), digest): digest for digest in digests}
    return {
        digest_of[hash]: Grant(id, actor, tuple(json.loads(groups)), _time(expires_at), _time(revoked_at))
        for hash, id, actor, groups, expires_at, revoked_at in db.execute(FIND, (json.dumps(list(digest_of)),))
    }


def _add(db: sqlite3.Connection, digest: str, row: Mapping[str, Any], key: bytes) -> None:
    db.execute(MAKE_KEY, (key.hex(),))
    (stored,) = db.execute(KEY).fetchone()
    times = {name: None if row[name] is None else timestamp(row[name]) for name in ("created_at", "expires_at")}
    hash = stored_hash(bytes.fromhex(stored), digest)
    db.execute(ADD, {**row, **times, "groups": json.dumps(row["groups"], ensure_ascii=False), "hash": hash})


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
