"""Logins of people at MCP servers in the database, which all processes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Protocol

from aibridge_addon.recording.reader import answer_of
from aibridge_addon.records.mcp_logins import Stage, StoredLogin, StoredToken

TIMEOUT = 10.0
"""Seconds. Maximum time of a query."""


class McpLoginStore(Protocol):
    """Blocks the calling thread. Every method raises DatabaseUnavailable."""

    def token(self, server_name: str, actor: str) -> StoredToken | None: ...

    def tokens(self, server_name: str) -> Sequence[StoredToken]:
        """Return all tokens of a server, by actor."""

    def put_token(self, token: StoredToken, now: datetime) -> None:
        """Insert a token, or replace it."""

    def claim_refresh(self, token: StoredToken, now: datetime, until: datetime) -> bool:
        """Return whether the caller is the only one that may renew this version of a token until then."""

    def replace_token(self, before: StoredToken, token: StoredToken, now: datetime) -> bool:
        """Replace this version of a token. Return False if it is there no more."""

    def release_refresh(self, token: StoredToken) -> None:
        """Let others renew this version of a token."""

    def drop_token(self, token: StoredToken) -> bool:
        """Delete this version of a token. Return False if it is there no more."""

    def offer_link(
        self, login: StoredLogin, digest: str, now: datetime, expires_at: datetime, replaced_until: datetime
    ) -> str:
        """Insert a link, unless the actor has one that expires later than `replaced_until`. Return its content."""

    def put_login(self, login: StoredLogin, digest: str, now: datetime, expires_at: datetime) -> bool:
        """Insert a login, or replace the actor's. Return whether it had one that has not ended."""

    def take(self, stage: Stage, digest: str, now: datetime) -> StoredLogin | None:
        """Delete a link or login, and return it if it has not expired."""

    def find(self, stage: Stage, digest: str, now: datetime) -> StoredLogin | None:
        """Return a link or login that has not expired."""

    def client(self, server_name: str) -> str | None:
        """Return the client that was registered for a server."""

    def put_client(self, server_name: str, content: str | None, now: datetime) -> None:
        """Insert or replace a server's client. None: delete it."""

    def close(self) -> None: ...


class McpLogins:
    """Runs queries on a thread of its own. Used on one event loop."""

    def __init__(self, store: McpLoginStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="aibridge-mcp-logins")

    async def use[Result](self, query: Callable[[McpLoginStore], Result]) -> Result:
        """Return the result of a query. Raises DatabaseUnavailable."""
        return await answer_of(lambda: query(self._store), self._threads, TIMEOUT)

    def close(self) -> None:
        self._store.close()
