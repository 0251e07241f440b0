"""What people who log in at MCP servers have in the database. All contents are encrypted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

Stage = Literal["link", "login"]
"""How far a login is: a link was shown, or the person is at the authorization server."""


@dataclass(frozen=True, slots=True)
class StoredToken:
    """An actor's token of a server."""

    server_name: str
    actor: str
    content: str
    version: str
    """Changes with each content."""


@dataclass(frozen=True, slots=True)
class StoredLogin:
    """A login that has not ended. An actor has at most one in each stage for each server."""

    server_name: str
    actor: str
    content: str


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


class Database(Protocol):
    """Runs queries without blocking the event loop."""

    async def use[Result](self, query: Callable[[McpLoginStore], Result]) -> Result:
        """Return the result of a query. Raises DatabaseUnavailable."""
