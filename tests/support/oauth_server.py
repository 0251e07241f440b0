"""An MCP server at which people log in, with its own authorization server: the parts of the `mcp` package.

with OAuthMcp() as server:
    server.user = "ada-at-home"                  # who logs in next; the server asks for no password
    settings = {"ours": server.settings()}
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any, Self
from urllib.parse import parse_qs

import httpx
import uvicorn
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    RefreshToken,
    TokenError,
    construct_redirect_uri,
)
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions, RevocationOptions
from mcp.server.mcpserver import MCPServer
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import SecretStr

from aibridge_addon.config.oauth import OAuth
from aibridge_addon.config.schema import HttpServer

KEY = "a-key-for-tests-that-is-long-enough-0123456789"
Answer = tuple[int, dict[str, str], bytes]
Override = Callable[["Seen"], Answer | None]


@dataclass(frozen=True)
class Seen:
    """A request that the server got."""

    method: str
    path: str
    query: dict[str, str]
    form: dict[str, str]
    headers: dict[str, str]


@dataclass
class Provider:
    """Everything that an authorization server has to remember."""

    lifetime: int = 3600
    rotates: bool = True
    user: str = "a-user"
    clients: dict[str, OAuthClientInformationFull] = field(default_factory=dict)
    codes: dict[str, AuthorizationCode] = field(default_factory=dict)
    access: dict[str, AccessToken] = field(default_factory=dict)
    refresh: dict[str, RefreshToken] = field(default_factory=dict)
    all_tokens: list[str] = field(default_factory=list)
    """Every token and code that was ever issued."""

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        code = AuthorizationCode(
            code=self._made("code"),
            scopes=params.scopes or [],
            expires_at=time.time() + 60,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
            subject=self.user,
        )
        self.codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(self, client: OAuthClientInformationFull, code: str) -> AuthorizationCode | None:
        return self.codes.get(code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, code: AuthorizationCode
    ) -> OAuthToken:
        del self.codes[code.code]
        return self._issued(code.client_id, code.scopes, code.resource, code.subject)

    async def load_refresh_token(self, client: OAuthClientInformationFull, token: str) -> RefreshToken | None:
        return self.refresh.get(token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        if self.rotates and self.refresh.pop(token.token, None) is None:
            raise TokenError("invalid_grant")
        return self._issued(token.client_id, scopes, token.resource, token.subject, renew=self.rotates)

    async def load_access_token(self, token: str) -> AccessToken | None:
        found = self.access.get(token)
        return found if found is not None and (found.expires_at or 0) > time.time() else None

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        for tokens in (self.access, self.refresh):
            for key in [key for key, each in tokens.items() if each.subject == token.subject]:
                del tokens[key]

    def _issued(
        self, client_id: str, scopes: list[str], resource: str | None, subject: str | None, *, renew: bool = True
    ) -> OAuthToken:
        common: dict[str, Any] = {"client_id": client_id, "scopes": scopes, "resource": resource, "subject": subject}
        access = self._made("access")
        self.access[access] = AccessToken(token=access, expires_at=int(time.time() + 3600), **common)
        refresh = None
        if renew:
            refresh = self._made("refresh")
            self.refresh[refresh] = RefreshToken(token=refresh, **common)
        return OAuthToken(access_token=access, expires_in=self.lifetime, refresh_token=refresh)

    def _made(self, kind: str) -> str:
        made = f"{kind}-{secrets.token_urlsafe(32)}"
        self.all_tokens.append(made)
        return made


class OAuthMcp:
    """Served on a thread of this process. `override` answers requests in place of the real thing."""

    def __init__(self, *, override: Override | None = None, registers: bool = True, revokes: bool = True) -> None:
        self.provider = Provider()
        self.seen: list[Seen] = []
        self.override = override
        self._registers, self._revokes = registers, revokes
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.base}/mcp"

    def settings(self, **settings: Any) -> HttpServer:
        return HttpServer(url=SecretStr(self.url), **{"oauth": OAuth()} | settings)

    def asked(self, path: str) -> list[Seen]:
        return [each for each in self.seen if each.path == path]

    def expire(self, actor_user: str) -> None:
        """Let a person's access tokens end."""
        for key in [key for key, each in self.provider.access.items() if each.subject == actor_user]:
            del self.provider.access[key]

    def __enter__(self) -> Self:
        app = _mcp_server(self).streamable_http_app()
        config = uvicorn.Config(self._around(app), log_level="critical", timeout_graceful_shutdown=1, lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None and self._thread is not None
        self._server.should_exit = True
        self._thread.join(20)
        with suppress(OSError):
            self._socket.close()

    def _around(self, app: Any) -> Callable[..., Awaitable[None]]:
        async def around(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            messages: list[Any] = []
            if scope["method"] == "POST":
                while not messages or messages[-1].get("more_body"):
                    messages.append(await receive())
            body = b"".join(each.get("body", b"") for each in messages)
            headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
            seen = Seen(
                scope["method"], scope["path"], _flat(scope["query_string"].decode()), _flat(body.decode()), headers
            )
            self.seen.append(seen)
            answer = self.override(seen) if self.override is not None else None
            if answer is not None:
                status, named, content = answer
                raw = [(name.encode(), value.encode()) for name, value in named.items()]
                await send({"type": "http.response.start", "status": status, "headers": raw})
                await send({"type": "http.response.body", "body": content})
                return

            async def again() -> Any:
                return messages.pop(0) if messages else await receive()

            await app(scope, again, send)

        return around


def _flat(text: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True).items()}


def _mcp_server(owner: OAuthMcp) -> MCPServer[Any]:
    auth = AuthSettings(
        issuer_url=owner.base,  # type: ignore[arg-type]
        resource_server_url=owner.url,  # type: ignore[arg-type]
        client_registration_options=ClientRegistrationOptions(enabled=owner._registers),
        revocation_options=RevocationOptions(enabled=owner._revokes),
        validate_token_resource=True,
    )
    server: MCPServer[Any] = MCPServer(
        "ours",
        log_level="CRITICAL",
        auth=auth,
        auth_server_provider=owner.provider,  # type: ignore[arg-type]
    )

    def whoami() -> str:
        """Return who has logged in."""
        token = get_access_token()
        return f"{token.subject}" if token is not None else "no one"

    def echo(text: str) -> str:
        """Return the text."""
        return text

    server.add_tool(whoami)
    server.add_tool(echo)
    return server


class Browser(httpx.Client):
    """Follows redirects, and keeps cookies."""

    def __init__(self, **options: Any) -> None:
        super().__init__(follow_redirects=True, trust_env=False, timeout=30, **options)


def cookies_of(response: httpx.Response) -> SimpleCookie:
    return SimpleCookie("; ".join(response.headers.get_list("set-cookie")))
