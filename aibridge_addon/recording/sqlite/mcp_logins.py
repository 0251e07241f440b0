"""Logins of people at MCP servers in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal

from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.sqlite.reader import SqliteConnection
from aibridge_addon.records.mcp_logins import Stage, StoredLogin, StoredToken

FIND_ALL = """
select server_name, actor, token, version from aibridge_mcp_tokens where server_name = :server order by actor
"""
FIND_ONE = """
select server_name, actor, token, version from aibridge_mcp_tokens where server_name = :server and actor = :actor
"""
PUT = """
insert into aibridge_mcp_tokens (server_name, actor, token, version, created_at, updated_at)
values (:server, :actor, :content, :version, :now, :now)
on conflict (server_name, actor) do update
set token = excluded.token, version = excluded.version, updated_at = excluded.updated_at, claim_expires_at = null
"""
CLAIM = """
update aibridge_mcp_tokens set claim_expires_at = :until
where server_name = :server and actor = :actor and version = :version
and (claim_expires_at is null or claim_expires_at <= :now)
"""
REPLACE = """
update aibridge_mcp_tokens set token = :content, version = :next, updated_at = :now, claim_expires_at = null
where server_name = :server and actor = :actor and version = :version
"""
RELEASE = """
update aibridge_mcp_tokens set claim_expires_at = null
where server_name = :server and actor = :actor and version = :version
"""
DROP = """
delete from aibridge_mcp_tokens where server_name = :server and actor = :actor and version = :version
"""

EXPIRE = "delete from aibridge_mcp_logins where expires_at <= :now"
OFFER = """
insert into aibridge_mcp_logins (server_name, actor, stage, hash, content, created_at, expires_at)
values (:server, :actor, 'link', :digest, :content, :now, :expires_at)
on conflict (server_name, actor, stage) do update
set hash = excluded.hash, content = excluded.content, created_at = excluded.created_at,
    expires_at = excluded.expires_at
where expires_at <= :replaced_until
"""
OFFERED = """
select content from aibridge_mcp_logins where server_name = :server and actor = :actor and stage = 'link'
"""
HAS_LOGIN = """
select 1 from aibridge_mcp_logins
where server_name = :server and actor = :actor and stage = 'login' and expires_at > :now
"""
PUT_LOGIN = """
insert or replace into aibridge_mcp_logins (server_name, actor, stage, hash, content, created_at, expires_at)
values (:server, :actor, 'login', :digest, :content, :now, :expires_at)
"""
FIND = """
select server_name, actor, content from aibridge_mcp_logins where hash = :digest and stage = :stage
and expires_at > :now
"""
TAKE = """
delete from aibridge_mcp_logins where hash = :digest and stage = :stage
returning server_name, actor, content, expires_at > :now
"""
CLIENT = "select client from aibridge_mcp_clients where server_name = :server"
PUT_CLIENT = """
insert into aibridge_mcp_clients (server_name, client, created_at) values (:server, :content, :now)
on conflict (server_name) do update set client = excluded.client, created_at = excluded.created_at
"""
DROP_CLIENT = "delete from aibridge_mcp_clients where server_name = :server"


class SqliteMcpLogins(SqliteConnection):
    """Implements `mcp_logins.McpLoginStore` for SQLite."""

    MODE: ClassVar[Literal["ro", "rw"]] = "rw"

    def token(self, server_name: str, actor: str) -> StoredToken | None:
        rows = self._rows(FIND_ONE, {"server": server_name, "actor": actor})
        return StoredToken(*rows[0]) if rows else None

    def tokens(self, server_name: str) -> Sequence[StoredToken]:
        return [StoredToken(*row) for row in self._rows(FIND_ALL, {"server": server_name})]

    def put_token(self, token: StoredToken, now: datetime) -> None:
        self._changed(PUT, _values(token) | {"now": timestamp(now)})

    def claim_refresh(self, token: StoredToken, now: datetime, until: datetime) -> bool:
        return self._changed(CLAIM, _values(token) | {"now": timestamp(now), "until": timestamp(until)})

    def replace_token(self, before: StoredToken, token: StoredToken, now: datetime) -> bool:
        changed = {"content": token.content, "next": token.version, "now": timestamp(now)}
        return self._changed(REPLACE, _values(before) | changed)

    def release_refresh(self, token: StoredToken) -> None:
        self._changed(RELEASE, _values(token))

    def drop_token(self, token: StoredToken) -> bool:
        return self._changed(DROP, _values(token))

    def offer_link(
        self, login: StoredLogin, digest: str, now: datetime, expires_at: datetime, replaced_until: datetime
    ) -> str:
        values = _login(login, digest, now, expires_at) | {"replaced_until": timestamp(replaced_until)}

        def offer(db: sqlite3.Connection) -> str:
            db.execute(EXPIRE, values)
            db.execute(OFFER, values)
            (content,) = db.execute(OFFERED, values).fetchone()
            return str(content)

        return self._at_once(offer)

    def put_login(self, login: StoredLogin, digest: str, now: datetime, expires_at: datetime) -> bool:
        values = _login(login, digest, now, expires_at)

        def put(db: sqlite3.Connection) -> bool:
            found = db.execute(HAS_LOGIN, values).fetchone() is not None
            db.execute(EXPIRE, values)
            db.execute(PUT_LOGIN, values)
            return found

        return self._at_once(put)

    def find(self, stage: Stage, digest: str, now: datetime) -> StoredLogin | None:
        rows = self._rows(FIND, {"stage": stage, "digest": digest, "now": timestamp(now)})
        return StoredLogin(*rows[0]) if rows else None

    def take(self, stage: Stage, digest: str, now: datetime) -> StoredLogin | None:
        rows = self._rows(TAKE, {"stage": stage, "digest": digest, "now": timestamp(now)})
        return StoredLogin(*rows[0][:3]) if rows and rows[0][3] else None

    def client(self, server_name: str) -> str | None:
        rows = self._rows(CLIENT, {"server": server_name})
        return rows[0][0] if rows else None

    def put_client(self, server_name: str, content: str | None, now: datetime) -> None:
        statement = DROP_CLIENT if content is None else PUT_CLIENT
        self._changed(statement, {"server": server_name, "content": content, "now": timestamp(now)})

    def _rows(self, statement: str, values: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        return self.use(lambda db: db.execute(statement, values).fetchall())

    def _changed(self, statement: str, values: Mapping[str, Any]) -> bool:
        return self.use(lambda db: db.execute(statement, values).rowcount > 0)

    def _at_once[Result](self, queries: Callable[[sqlite3.Connection], Result]) -> Result:
        def run(db: sqlite3.Connection) -> Result:
            db.execute("begin immediate")
            try:
                result = queries(db)
                db.execute("commit")
            except sqlite3.Error:
                db.execute("rollback")
                raise
            return result

        return self.use(run)


def _values(token: StoredToken) -> dict[str, Any]:
    return {
        "server": token.server_name,
        "actor": token.actor,
        "content": token.content,
        "version": token.version,
    }


def _login(login: StoredLogin, digest: str, now: datetime, expires_at: datetime) -> dict[str, Any]:
    return {
        "server": login.server_name,
        "actor": login.actor,
        "content": login.content,
        "digest": digest,
        "now": timestamp(now),
        "expires_at": timestamp(expires_at),
    }
