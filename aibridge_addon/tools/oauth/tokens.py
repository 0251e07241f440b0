"""The tokens of actors: read from the database, renewed in time by one process, dropped when they are refused.

read ─▶ fresh ─▶ use
         │ expires soon, or the server has refused it
         ▼
  claim in the database ─ taken by another process ─▶ wait ─▶ read
         │ claimed
         ▼
  renew ─▶ replace this version ─ it is gone: logged out, or logged in again ─▶ read
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from aibridge_addon.config.schema import Egress, HttpServer
from aibridge_addon.records import DatabaseUnavailable, utc_now
from aibridge_addon.records.mcp_logins import Database, StoredToken
from aibridge_addon.tools.oauth import OAuthError, OAuthRefused, flow
from aibridge_addon.tools.oauth.flow import Grant
from aibridge_addon.tools.oauth.http import Guard, Http
from aibridge_addon.tools.oauth.sealing import Sealer
from aibridge_addon.wire.printable import printable_line

logger = logging.getLogger(__name__)

EARLY = 30.0
"""Seconds before its end at which a token is renewed; at most a tenth of its lifetime."""
FRESH = 3.0
"""Seconds after which the database is asked again about a token. A logout counts everywhere after this time."""
ABSENT = 1.0
"""The same for an actor without a token."""
LEASE = timedelta(seconds=30)
"""How long one process may take to renew a token before another one tries."""
WAIT = 20.0
"""Seconds that a call waits for another process that renews its token."""
POLL = 0.1
"""Seconds between looks at a token that another process renews."""
MAX_KNOWN = 10_000
"""Tokens in memory. Those that were not used for the longest time are dropped."""


@dataclass(frozen=True, slots=True)
class _Known:
    read_at: float
    stored: StoredToken | None
    grant: Grant | None


class Tokens:
    """Used on one event loop."""

    def __init__(
        self,
        database: Database,
        sealer: Sealer,
        servers: Mapping[str, HttpServer],
        egress: Egress,
        *,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`servers`: those with `oauth`, by their names."""
        self._database = database
        self._sealer = sealer
        self._urls = {name: server.url.get_secret_value() for name, server in servers.items()}
        self._http = {name: Http(Guard(url, egress)) for name, url in self._urls.items()}
        self._now = now
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._renewing: dict[tuple[str, str], asyncio.Task[Grant | None]] = {}
        self._warned = False

    def http(self, server_name: str) -> Http:
        return self._http[server_name]

    async def maybe_grant(self, server_name: str, actor: str, refused: str | None = None) -> Grant | None:
        """Return an actor's tokens, renewed if need be. None: the actor has to log in.

        Args:
            refused: an access token that the server does not accept.

        Raises:
            OAuthError: it cannot be found out now.
        """
        known = await self._read(server_name, actor)
        if known.grant is None:
            return None
        if known.grant.access_token != refused and not self._ends(known.grant, early=True):
            return known.grant
        key = (server_name, actor)
        task = self._renewing.get(key)
        if task is None:
            # A task of its own: a call that is cancelled must not lose a refresh token that was changed already.
            task = self._renewing[key] = asyncio.get_running_loop().create_task(self._renewed(*key, refused))
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    async def put(self, server_name: str, actor: str, grant: Grant) -> None:
        """Store what an actor has got. Raises DatabaseUnavailable."""
        stored = self._sealed(server_name, actor, grant)
        await self._database.use(lambda store: store.put_token(stored, self._now()))
        self._remember(stored, grant)

    async def reject(self, server_name: str, actor: str, access_token: str) -> None:
        """Forget a token that the server has refused although it is new."""
        try:
            known = await self._read(server_name, actor, again=True)
            if known.stored is not None and known.grant is not None and known.grant.access_token == access_token:
                await self._lose(known.stored, "the server refuses its token")
        except OAuthError:
            pass  # the next call sees the same

    async def actors(self, server_name: str) -> list[str]:
        """Return who has a token of a server. Raises DatabaseUnavailable."""
        found = await self._database.use(lambda store: store.tokens(server_name))
        return [each.actor for each in found]

    async def drop(self, server_name: str, actor: str) -> bool | None:
        """Delete an actor's tokens, and revoke them. Return whether they were revoked. None: there are none.

        Raises DatabaseUnavailable.
        """
        stored = await self._database.use(lambda store: store.token(server_name, actor))
        if stored is None or not await self._database.use(lambda store: store.drop_token(stored)):
            return None
        self._known.pop((server_name, actor), None)
        grant = self._opened(stored)
        try:
            return grant is not None and await flow.revoke(self._http[server_name], grant)
        except OAuthError as e:
            logger.warning("MCP server %s: tokens cannot be revoked: %s", server_name, e)
            return False

    # --- the database ---------------------------------------------------------------------------------------------

    async def _read(self, server_name: str, actor: str, *, again: bool = False) -> _Known:
        key = (server_name, actor)
        known = self._known.get(key)
        if known is not None and not again:
            self._known.move_to_end(key)
            if self._clock() - known.read_at < (FRESH if known.grant is not None else ABSENT):
                return known
        try:
            stored = await self._database.use(lambda store: store.token(server_name, actor))
        except DatabaseUnavailable as e:
            if known is not None and known.grant is not None and not again:
                return known  # no logout can be stored meanwhile
            raise OAuthError(f"the database, which has the logins, is away: {e}") from None
        if stored is None:
            return self._remember(None, None, key)
        if known is not None and known.stored == stored:
            return self._remember(stored, known.grant)
        return self._remember(stored, self._opened(stored))

    def _remember(self, stored: StoredToken | None, grant: Grant | None, key: tuple[str, str] | None = None) -> _Known:
        if stored is not None:
            key = (stored.server_name, stored.actor)
        assert key is not None
        known = self._known[key] = _Known(self._clock(), stored, grant)
        self._known.move_to_end(key)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return known

    def _opened(self, stored: StoredToken) -> Grant | None:
        """Decrypt a token. None: it cannot be, or it is of another URL, to which it must not be sent."""
        value = self._sealer.maybe_open(_owner(stored), stored.content)
        if value is None:
            if not self._warned:
                text = "MCP server %s: tokens cannot be decrypted with mcp.token_key, so people have to log in again"
                logger.warning(text, stored.server_name)
                self._warned = True
            return None
        try:
            grant = Grant.model_validate(value)
        except ValidationError:
            return None
        return grant if grant.server_url == self._urls[stored.server_name] else None

    def _sealed(self, server_name: str, actor: str, grant: Grant) -> StoredToken:
        bare = StoredToken(server_name, actor, "", secrets.token_hex(16))
        value = grant.model_dump(mode="json", exclude_none=True)
        return StoredToken(server_name, actor, self._sealer.seal(_owner(bare), value), bare.version)

    # --- renewal --------------------------------------------------------------------------------------------------

    async def _renewed(self, server_name: str, actor: str, refused: str | None) -> Grant | None:
        deadline = self._clock() + WAIT
        while True:
            known = await self._read(server_name, actor, again=True)
            grant, stored = known.grant, known.stored
            if grant is None or stored is None:
                return None
            is_refused = grant.access_token == refused
            if not is_refused and not self._ends(grant, early=True):
                return grant
            if grant.refresh_token is None:
                if not is_refused and not self._ends(grant):
                    return grant
                await self._lose(stored, "its token has expired and cannot be renewed")
                return None
            if await self._claimed(stored):
                return await self._renew(stored, grant, is_usable=not is_refused and not self._ends(grant))
            if self._clock() >= deadline:
                raise OAuthError("another process renews the token and has not ended yet")
            await asyncio.sleep(POLL)

    async def _claimed(self, stored: StoredToken) -> bool:
        now = self._now()
        return await self._use(lambda store: store.claim_refresh(stored, now, now + LEASE))

    async def _renew(self, stored: StoredToken, grant: Grant, *, is_usable: bool) -> Grant | None:
        """Renew a token that was claimed. `is_usable`: it has not expired yet."""
        http = self._http[stored.server_name]
        try:
            renewed = await flow.refresh(http, grant, lambda: self._now().timestamp())
        except OAuthRefused as e:
            await self._lose(stored, str(e))
            return None
        except OAuthError as e:
            await self._use(lambda store: store.release_refresh(stored))
            if is_usable:
                return grant
            logger.warning("MCP server %s: a token cannot be renewed: %s", stored.server_name, e)
            raise
        after = self._sealed(stored.server_name, stored.actor, renewed)
        if not await self._use(lambda store: store.replace_token(stored, after, self._now())):
            await _revoked(http, renewed)  # logged out meanwhile, or logged in again
            return (await self._read(stored.server_name, stored.actor, again=True)).grant
        self._remember(after, renewed)
        return renewed

    async def _lose(self, stored: StoredToken, why: str) -> None:
        """Forget a token that does not count any more."""
        await self._use(lambda store: store.drop_token(stored))
        self._known.pop((stored.server_name, stored.actor), None)
        actor = printable_line(stored.actor)
        logger.info("MCP server %s: %s has to log in again: %s", stored.server_name, actor, why)

    async def _use[Result](self, query: Callable[..., Result]) -> Result:
        try:
            return await self._database.use(query)
        except DatabaseUnavailable as e:
            raise OAuthError(f"the database, which has the logins, is away: {e}") from None

    def _ended(self, key: tuple[str, str], task: asyncio.Task[Grant | None]) -> None:
        self._renewing.pop(key, None)
        if not task.cancelled():
            task.exception()  # else asyncio logs that it was never retrieved

    def _ends(self, grant: Grant, *, early: bool = False) -> bool:
        """Return whether an access token has expired, or does so soon."""
        if grant.expires_at is None:
            return False
        margin = min(EARLY, grant.lifetime / 10) if early else 0.0
        return self._now().timestamp() >= grant.expires_at - margin


def _owner(stored: StoredToken) -> tuple[str, ...]:
    return "token", stored.server_name, stored.actor


async def _revoked(http: Http, grant: Grant) -> None:
    try:
        await flow.revoke(http, grant)
    except OAuthError:
        pass
