"""An actor's token in the requests of its connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from http import HTTPStatus
from typing import cast

import httpx2
from mcp.client.auth import utils

from aibridge_addon.tools.oauth import OAuthError
from aibridge_addon.tools.oauth.tokens import Tokens


class LoginRequired(httpx2.TransportError):
    """The actor has no token that the server accepts."""


class TokenUnavailable(httpx2.TransportError):
    """It cannot be found out now whether the actor has a token. The message is for people."""


class TokenCredential(httpx2.Auth):
    """Adds the token to each request. If the server refuses it, it is renewed once, and then dropped."""

    requires_response_body = False

    def __init__(self, tokens: Tokens, server_name: str, actor: str) -> None:
        self._tokens = tokens
        self._server_name = server_name
        self._actor = actor
        self._shown: tuple[str, ...] = ()
        self._missing_scope: tuple[str, str | None] | None = None
        """The access token that did not suffice, and what its scope lacks (RFC 6750, section 3.1)."""

    @property
    def auth(self) -> httpx2.Auth:
        return self

    @property
    def secrets(self) -> Sequence[str]:
        """Texts that must not appear in logs or results."""
        return self._shown

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        token = await self._token(None)
        request.headers["authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            # httpx reads the whole body of an answer before it sends the next request.
            await cast(httpx2.AsyncByteStream, response.stream).aclose()
            response.stream = httpx2.ByteStream(b"")
            token = await self._token(token)
            request.headers["authorization"] = f"Bearer {token}"
            response = yield request
            if response.status_code == HTTPStatus.UNAUTHORIZED:
                await self._tokens.reject(self._server_name, self._actor, token)
        if (
            response.status_code == HTTPStatus.FORBIDDEN
            and utils.extract_field_from_www_auth(response, "error") == "insufficient_scope"
        ):
            self._missing_scope = token, utils.extract_scope_from_www_auth(response)

    def take_missing_scope(self, token: str) -> str | None:
        """Return what the server has asked for beyond this access token's scope, once.

        An answer to an older token may come after a login.
        """
        found, self._missing_scope = self._missing_scope, None
        return found[1] if found is not None and found[0] == token else None

    async def _token(self, refused: str | None) -> str:
        try:
            grant = await self._tokens.maybe_grant(self._server_name, self._actor, refused)
        except OAuthError as e:
            raise TokenUnavailable(str(e)) from None
        if grant is None:
            raise LoginRequired("the actor has to log in")
        self._shown = tuple(text for text in (grant.access_token, grant.refresh_token) if text is not None)
        return grant.access_token
