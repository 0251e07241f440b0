"""Logins, from the link that a model shows to the token in the database.

    link ──▶ begin ──▶ authorization server ──▶ finish
    a ticket           `state`, PKCE, a cookie     the token

The ticket in the link says for whom the login is: it is random, counts once, and only the database knows whose it is.
The cookie binds the way back to the browser that has begun.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Self
from urllib.parse import urlsplit

from mcp.shared.auth import OAuthClientInformationFull, OAuthMetadata
from pydantic import ValidationError

from aibridge_addon.config.oauth import base_url
from aibridge_addon.config.schema import Egress, HttpServer, Mcp
from aibridge_addon.records import utc_now
from aibridge_addon.records.mcp_logins import Database, StoredLogin
from aibridge_addon.tools.oauth import OAuthError, flow
from aibridge_addon.tools.oauth.flow import Discovered
from aibridge_addon.tools.oauth.sealing import Sealer
from aibridge_addon.tools.oauth.tokens import Tokens
from aibridge_addon.wire.printable import printable_line

logger = logging.getLogger(__name__)

TICKET_PREFIX = "aib_login_"
"""Rows and logs contain no ticket: texts of the form `aib_…` are redacted."""
TICKET_BYTES = 24
LIFETIME = timedelta(minutes=10)
"""How long a link counts, and after that how long the person may be at the authorization server."""
SHOWN_AGAIN = timedelta(minutes=5)
"""Calls show the same link again as long as it counts for this time."""
MAX_CODE = 4096
"""Characters of an authorization code."""

GONE = "This link was used already, has expired or is not complete. Call the tool again to get another one."
INTERRUPTED = "This login was not begun in this browser, has ended already, or took too long. Call the tool again."


@dataclass(frozen=True, slots=True)
class Begun:
    """The browser goes to the authorization server."""

    location: str
    cookie: str


@dataclass(frozen=True, slots=True)
class Finished:
    actor: str


class Logins:
    """Used on one event loop."""

    def __init__(
        self,
        database: Database,
        sealer: Sealer,
        servers: Mapping[str, HttpServer],
        tokens: Tokens,
        base_url: Callable[[], str],
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """`base_url`: under which browsers reach the login pages. Empty: they are not served."""
        self.tokens = tokens
        self._database = database
        self._sealer = sealer
        self._servers = servers
        self._base_url = base_url
        self._now = now

    @classmethod
    def made(cls, database: Database, mcp: Mcp, egress: Egress, served_at: Callable[[], str]) -> Self:
        """Create the logins of a configuration. `served_at`: host and port of the listener that has the pages."""
        sealer = Sealer(mcp.token_key)
        tokens = Tokens(database, sealer, mcp.logins, egress)
        return cls(database, sealer, mcp.logins, tokens, lambda: base_url(mcp.login_url, served_at()))

    @property
    def base_url(self) -> str:
        return self._base_url()

    @property
    def is_local(self) -> bool:
        """Whether links lead to the machine of the person itself."""
        host = urlsplit(self.base_url).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")

    def has(self, server_name: str) -> bool:
        return server_name in self._servers

    async def link(self, server_name: str, actor: str, scope: str | None = None) -> str:
        """Return a link with which this actor logs in. `scope`: what the server has asked for.

        Raises OAuthError and DatabaseUnavailable.
        """
        if not self.base_url:
            raise OAuthError("this bridge serves no pages to log in: set metrics.listen")
        ticket = TICKET_PREFIX + secrets.token_urlsafe(TICKET_BYTES)
        owner = ("link", server_name, actor)
        sealed = self._sealer.seal(owner, {"ticket": ticket, "scope": scope})
        login, now = StoredLogin(server_name, actor, sealed), self._now()

        async def offered(replaced_until: datetime) -> dict[str, Any] | None:
            content = await self._database.use(
                lambda store: store.offer_link(login, _digest(ticket), now, now + LIFETIME, replaced_until)
            )
            return self._sealer.maybe_open(owner, content)

        found = await offered(now + SHOWN_AGAIN)
        if found is None or (scope is not None and found.get("scope") != scope):
            found = await offered(now + 2 * LIFETIME)
        shown = str(found["ticket"]) if found is not None else ticket
        return f"{self.base_url}/mcp/login/{server_name}?ticket={shown}"

    async def owner(self, server_name: str, ticket: str) -> str:
        """Return for whom a link is, without using it. Raises OAuthError and DatabaseUnavailable."""
        found = await self._database.use(lambda store: store.find("link", _digest(ticket), self._now()))
        if found is None or found.server_name != server_name:
            raise OAuthError(GONE)
        return found.actor

    async def begin(self, server_name: str, ticket: str) -> Begun:
        """Use a link. Raises OAuthError and DatabaseUnavailable."""
        await self.owner(server_name, ticket)
        link = await self._database.use(lambda store: store.take("link", _digest(ticket), self._now()))
        content = self._sealer.maybe_open(("link", link.server_name, link.actor), link.content) if link else None
        if link is None or content is None:
            raise OAuthError(GONE)
        server = self._servers[server_name]
        assert server.oauth is not None
        url, redirect_uri = server.url.get_secret_value(), flow.redirect_uri_of(self.base_url, server_name)
        http = self.tokens.http(server_name)
        found = await flow.discover(http, url, _plain_headers(server), server.oauth, content.get("scope"))
        state, cookie = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        login = StoredLogin(server_name, link.actor, "")
        digest, now = _digest(state), self._now()
        repeated = await self._database.use(lambda store: store.put_login(login, digest, now, now + LIFETIME))
        client = flow.configured_client(server.oauth, found.metadata) or await self._registered(
            server_name, found, redirect_uri, afresh=repeated
        )
        request = flow.authorization_request(found, client, redirect_uri, state)
        value = {
            "verifier": request.verifier,
            "cookie": _digest(cookie),
            "client": client.model_dump(mode="json", exclude_none=True),
            "metadata": flow.needed(found.metadata).model_dump(mode="json", exclude_none=True),
            "resource": found.resource,
            "scope": found.scope,
            "redirect_uri": redirect_uri,
            "server_url": url,
        }
        login = replace(login, content=self._sealer.seal(_owner(login), value))
        await self._database.use(lambda store: store.put_login(login, digest, now, now + LIFETIME))
        return Begun(request.url, cookie)

    async def finish(self, server_name: str, query: Mapping[str, str], cookie: str) -> Finished:
        """Take the browser back from the authorization server. Raises OAuthError and DatabaseUnavailable."""
        state = query.get("state", "")
        login = await self._database.use(lambda store: store.take("login", _digest(state), self._now()))
        content = self._sealer.maybe_open(_owner(login), login.content) if login is not None else None
        if login is None or content is None or login.server_name != server_name:
            raise OAuthError(INTERRUPTED)
        server_url = self._servers[server_name].url.get_secret_value()
        is_same = secrets.compare_digest(_digest(cookie), str(content["cookie"]))
        if not is_same or content["server_url"] != server_url:
            raise OAuthError(INTERRUPTED)
        try:
            metadata = OAuthMetadata.model_validate(content["metadata"])
            client = OAuthClientInformationFull.model_validate(content["client"])
        except (ValidationError, KeyError):
            raise OAuthError(INTERRUPTED) from None
        flow.check_issuer(metadata, query.get("iss"))
        if "error" in query:
            raise OAuthError(f"The authorization server has not permitted it: {_refusal(query)}")
        code = query.get("code", "")
        if not 0 < len(code) <= MAX_CODE:
            raise OAuthError("The authorization server has sent no code.")
        grant = await flow.exchange(
            self.tokens.http(server_name),
            server_url=server_url,
            found=Discovered(metadata, content["resource"], content["scope"]),
            client=client,
            code=code,
            verifier=content["verifier"],
            redirect_uri=content["redirect_uri"],
            now=lambda: self._now().timestamp(),
        )
        await self.tokens.put(server_name, login.actor, grant)
        logger.info("MCP server %s: %s has logged in", server_name, printable_line(login.actor))
        return Finished(login.actor)

    async def _registered(
        self, server_name: str, found: Discovered, redirect_uri: str, *, afresh: bool
    ) -> OAuthClientInformationFull:
        """Return the client that is registered for all actors.

        `afresh`: a login with it has not come back, so the authorization server may have forgotten it.
        """
        owner = ("client", server_name)
        now = self._now()
        issuer = str(found.metadata.issuer)
        stored = None if afresh else await self._database.use(lambda store: store.client(server_name))
        value = self._sealer.maybe_open(owner, stored) if stored is not None else None
        if value is not None and (value.get("issuer"), value.get("redirect_uri")) == (issuer, redirect_uri):
            client = OAuthClientInformationFull.model_validate(value["client"])
            if not client.client_secret_expires_at or client.client_secret_expires_at > now.timestamp():
                return client
        client = await flow.register(self.tokens.http(server_name), found, redirect_uri)
        kept = client.model_dump(mode="json", exclude_none=True)
        sealed = self._sealer.seal(owner, {"issuer": issuer, "redirect_uri": redirect_uri, "client": kept})
        await self._database.use(lambda store: store.put_client(server_name, sealed, now))
        return client


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _owner(login: StoredLogin) -> tuple[str, ...]:
    return "login", login.server_name, login.actor


def _plain_headers(server: HttpServer) -> dict[str, str]:
    """Return the server's own headers, without those that name an actor."""
    names = {key.removeprefix("headers.") for key in server.templates}
    return {name: value.get_secret_value() for name, value in server.headers.items() if name not in names}


def _refusal(query: Mapping[str, str]) -> str:
    words = [query[name] for name in ("error", "error_description") if query.get(name)]
    return printable_line(": ".join(words)[: flow.MAX_SAID])
