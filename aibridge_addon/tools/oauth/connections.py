"""A server at which each actor logs in. Its connections are those of `personal`, with the actors' own tokens.

A call of an actor without a token is answered with a link. While the server's tools are not known, because no actor has
logged in yet, one stand-in takes their place, whose result is the link.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from aibridge_addon.records import DatabaseUnavailable
from aibridge_addon.tools import CallError
from aibridge_addon.tools.caller import Caller
from aibridge_addon.tools.catalog import ListedTool, Listing, admit
from aibridge_addon.tools.oauth import OAuthError
from aibridge_addon.tools.oauth.credential import TokenCredential
from aibridge_addon.tools.oauth.logins import LIFETIME, Logins
from aibridge_addon.tools.personal import PersonalConnections

STAND_IN = "login"
"""The tool that a server has until its own tools are known."""
CHECKED_WITHIN = 2.0
"""Seconds to find out whether a call has failed because its token does not count any more."""


class LoginConnections(PersonalConnections):
    def __init__(self, listing: Listing, *args: Any, logins: Logins, **options: Any) -> None:
        super().__init__(listing, *args, **options)
        self._logins = logins

    @property
    def stand_in(self) -> Listing:
        """What is offered while the server's tools are not known. The choice of tools does not concern it."""
        tool = ListedTool(
            STAND_IN,
            f"Log in at {self.name}. The tools of {self.name} can be used after that. Returns a link for the user.",
            {"type": "object", "properties": {}},
        )
        return dataclasses.replace(self.listing, tools=admit([tool])[0], allow=(), deny=(), read_only=False, pins=None)

    async def prepare(self, caller: Caller, timeout: float) -> None:
        if not self._listed and await self._has_token(caller):
            await super().prepare(caller, timeout)

    async def call(
        self,
        tool: str,
        arguments: dict[str, Any],
        timeout: float,
        meta: Mapping[str, Any] | None = None,
        caller: Caller | None = None,
        total: float | None = None,
    ) -> Any:
        """As `PersonalConnections.call`. For an actor without a token, the error contains a link."""
        if caller is None:
            raise CallError(f"MCP server {self.name} is used in the name of an actor, and there is none")
        deadline = time.monotonic() + timeout
        await self._admit(caller, timeout)
        if tool == STAND_IN and not any(each.name == STAND_IN for each in self.listing.tools):
            return await self._logged_in(caller, deadline - time.monotonic())
        try:
            left = max(deadline - time.monotonic(), 0.001)
            return await super().call(tool, arguments, left, meta, caller, total)
        except CallError:
            await self._admit(caller, CHECKED_WITHIN)  # the token may not count any more
            raise

    async def _logged_in(self, caller: Caller, timeout: float) -> Any:
        await super().prepare(caller, timeout)
        if not self._listed:
            raise CallError(f"MCP server {self.name} is not connected: {self.problem or 'it did not answer in time'}")
        text = f"The user has logged in at {self.name}. Its tools are offered with the user's next request."
        return {"content": [{"type": "text", "text": text}]}

    async def _admit(self, caller: Caller, timeout: float) -> None:
        """Raise CallError, with a link, if an actor has no token, or one whose scope does not suffice."""
        if caller.anonymous:
            raise CallError(
                f"MCP server {self.name} needs a login, which only actors that authenticate can have", "login"
            )
        if not caller.actor.isprintable():
            raise CallError(f"MCP server {self.name} needs a login, and the actor's name cannot be printed", "login")
        try:
            async with asyncio.timeout(timeout):
                link = await self._maybe_link(caller.actor)
        except TimeoutError:
            text = f"MCP server {self.name}: the actor's token could not be had within {timeout:g} s"
            raise CallError(text, "timeout") from None
        except (OAuthError, DatabaseUnavailable) as e:
            raise CallError(f"MCP server {self.name}: {e}", "login") from None
        if link is None:
            return
        minutes = round(LIFETIME.total_seconds() / 60)
        raise CallError(
            f"the user has to log in at MCP server {self.name} first. Show the user this link exactly as it is, and"
            f" call the tool again after the login. The link counts once, for {minutes} minutes: {link}",
            "login",
        )

    async def _maybe_link(self, actor: str) -> str | None:
        """Return a link to log in. None: the actor has a token that suffices."""
        grant, scope = await self._logins.tokens.maybe_grant(self.name, actor), None
        if grant is None:
            self.forget(actor)
            self._failed.pop(actor, None)  # a connection after the login need not wait
        else:
            each = self._actors.get(actor)
            credential = each.connection.credential if each is not None else None
            if isinstance(credential, TokenCredential):
                scope = credential.take_missing_scope(grant.access_token)
            if scope is None:
                return None
        return await self._logins.link(self.name, actor, scope)

    async def _has_token(self, caller: Caller) -> bool:
        if caller.anonymous or not caller.actor.isprintable():
            return False
        try:
            return await self._logins.tokens.maybe_grant(self.name, caller.actor) is not None
        except OAuthError:
            return False  # a call gets the reason
