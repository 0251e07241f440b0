"""Logins of people at MCP servers in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar

from aibridge_addon.recording.postgres.connection import Connection
from aibridge_addon.recording.postgres.reader import PostgresConnection
from aibridge_addon.records.mcp_logins import Stage, StoredLogin, StoredToken

FIND_ALL = """
select server_name, actor, token, version from aibridge_mcp_tokens where server_name = %(server)s order by actor
"""
FIND_ONE = """
select server_name, actor, token, version from aibridge_mcp_tokens where server_name = %(server)s and actor = %(actor)s
"""
PUT = """
insert into aibridge_mcp_tokens (server_name, actor, token, version, created_at, updated_at)
values (%(server)s, %(actor)s, %(content)s, %(version)s, %(now)s, %(now)s)
on conflict (server_name, actor) do update
set token = excluded.token, version = excluded.version, updated_at = excluded.updated_at, claim_expires_at = null
"""
CLAIM = """
update aibridge_mcp_tokens set claim_expires_at = %(until)s
where server_name = %(server)s and actor = %(actor)s and version = %(version)s
and (claim_expires_at is null or claim_expires_at <= %(now)s)
"""
REPLACE = """
update aibridge_mcp_tokens set token = %(content)s, version = %(next)s, updated_at = %(now)s, claim_expires_at = null
where server_name = %(server)s and actor = %(actor)s and version = %(version)s
"""
RELEASE = """
update aibridge_mcp_tokens set claim_expires_at = null
where server_name = %(server)s and actor = %(actor)s and version = %(version)s
"""
DROP = """
delete from aibridge_mcp_tokens where server_name = %(server)s and actor = %(actor)s and version = %(version)s
"""

EXPIRE = "delete from aibridge_mcp_logins where expires_at <= %(now)s"
OFFER = """
insert into aibridge_mcp_logins as present (server_name, actor, stage, hash, content, created_at, expires_at)
values (%(server)s, %(actor)s, 'link', %(digest)s, %(content)s, %(now)s, %(expires_at)s)
on conflict (server_name, actor, stage) do update
set hash = excluded.hash, content = excluded.content, created_at = excluded.created_at,
    expires_at = excluded.expires_at
where present.expires_at <= %(replaced_until)s
"""
OFFERED = """
select content from aibridge_mcp_logins where server_name = %(server)s and actor = %(actor)s and stage = 'link'
"""
HAS_LOGIN = """
select 1 from aibridge_mcp_logins
where server_name = %(server)s and actor = %(actor)s and stage = 'login' and expires_at > %(now)s
"""
PUT_LOGIN = """
insert into aibridge_mcp_logins (server_name, actor, stage, hash, content, created_at, expires_at)
values (%(server)s, %(actor)s, 'login', %(digest)s, %(content)s, %(now)s, %(expires_at)s)
on conflict (server_name, actor, stage) do update
set hash = excluded.hash, content = excluded.content, created_at = excluded.created_at,
    expires_at = excluded.expires_at
"""
FIND = """
select server_name, actor, content from aibridge_mcp_logins
where hash = %(digest)s and stage = %(stage)s and expires_at > %(now)s
"""
TAKE = """
delete from aibridge_mcp_logins where hash = %(digest)s and stage = %(stage)s
returning server_name, actor, content, expires_at > %(now)s
"""
CLIENT = "select client from aibridge_mcp_clients where server_name = %(server)s"
PUT_CLIENT = """
insert into aibridge_mcp_clients (server_name, client, created_at) values (%(server)s, %(content)s, %(now)s)
on conflict (server_name) do update set client = excluded.client, created_at = excluded.created_at
"""
DROP_CLIENT = "delete from aibridge_mcp_clients where server_name = %(server)s"


class PostgresMcpLogins(PostgresConnection):
    """Implements `mcp_logins.McpLoginStore` for PostgreSQL."""

    SETTINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"statement_timeout": "5s"})

    def token(self, server_name: str, actor: str) -> StoredToken | None:
        rows = self._rows(FIND_ONE, {"server": server_name, "actor": actor})
        return StoredToken(*rows[0]) if rows else None

    def tokens(self, server_name: str) -> Sequence[StoredToken]:
        return [StoredToken(*row) for row in self._rows(FIND_ALL, {"server": server_name})]

    def put_token(self, token: StoredToken, now: datetime) -> None:
        self._changed(PUT, _values(token) | {"now": now})

    def claim_refresh(self, token: StoredToken, now: datetime, until: datetime) -> bool:
        return self._changed(CLAIM, _values(token) | {"now": now, "until": until})

    def replace_token(self, before: StoredToken, token: StoredToken, now: datetime) -> bool:
        return self._changed(REPLACE, _values(before) | {"content": token.content, "next": token.version, "now": now})

    def release_refresh(self, token: StoredToken) -> None:
        self._changed(RELEASE, _values(token))

    def drop_token(self, token: StoredToken) -> bool:
        return self._changed(DROP, _values(token))

    def offer_link(
        self, login: StoredLogin, digest: str, now: datetime, expires_at: datetime, replaced_until: datetime
    ) -> str:
        values = _login(login, digest, now, expires_at) | {"replaced_until": replaced_until}

        def offer(connection: Connection) -> str:
            with connection.transaction():
                connection.execute(EXPIRE, values)
                connection.execute(OFFER, values)
                (content,) = connection.execute(OFFERED, values).fetchone() or (login.content,)
            return str(content)

        return self.use(offer)

    def put_login(self, login: StoredLogin, digest: str, now: datetime, expires_at: datetime) -> bool:
        values = _login(login, digest, now, expires_at)

        def put(connection: Connection) -> bool:
            with connection.transaction():
                found = connection.execute(HAS_LOGIN, values).fetchone() is not None
                connection.execute(EXPIRE, values)
                connection.execute(PUT_LOGIN, values)
            return found

        return self.use(put)

    def find(self, stage: Stage, digest: str, now: datetime) -> StoredLogin | None:
        rows = self._rows(FIND, {"stage": stage, "digest": digest, "now": now})
        return StoredLogin(*rows[0]) if rows else None

    def take(self, stage: Stage, digest: str, now: datetime) -> StoredLogin | None:
        rows = self._rows(TAKE, {"stage": stage, "digest": digest, "now": now})
        return StoredLogin(*rows[0][:3]) if rows and rows[0][3] else None

    def client(self, server_name: str) -> str | None:
        rows = self._rows(CLIENT, {"server": server_name})
        return rows[0][0] if rows else None

    def put_client(self, server_name: str, content: str | None, now: datetime) -> None:
        statement = DROP_CLIENT if content is None else PUT_CLIENT
        self._changed(statement, {"server": server_name, "content": content, "now": now})

    def _rows(self, statement: str, values: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        return self.use(lambda connection: connection.execute(statement.encode(), values).fetchall())

    def _changed(self, statement: str, values: Mapping[str, Any]) -> bool:
        return self.use(lambda connection: connection.execute(statement.encode(), values).rowcount > 0)


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
        "now": now,
        "expires_at": expires_at,
    }
