"""Who may see the pages: checks of host, origin and token, and the headers of every answer.

A page of another site may make a browser send requests to a listener on loopback, also under a name of its own that
resolves to 127.0.0.1 (DNS rebinding). So without a token only names of the machine itself are answered, and requests
that another site has started are refused.

The answer to a wrong token is delayed. While `MAX_WAITING` of them wait, no further token is compared, so `MAX_WAITING`
tokens can be tried in `DELAY` seconds. A cookie of an earlier login is always good.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from urllib.parse import parse_qs, urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aibridge_addon.telemetry.log.text import one_line

logger = logging.getLogger(__name__)

COOKIE = "aibridge_web"
LOGIN = "/login"
STATIC = "/static/"
MAX_FORM = 4096
"""Bytes of the login form."""
Wait = Callable[[float], Awaitable[None]]

DELAY = 1.0
"""Seconds before the answer to a wrong token."""
MAX_WAITING = 16
"""Answers to wrong tokens that wait at the same time."""
MAX_ADDRESS = 60
MAX_LOGGED = 100
"""Addresses whose first wrong token is logged."""
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",  # `no-referrer` makes browsers send `Origin: null` with forms (Fetch, 3.2)
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
)
OWN_SITE = ("same-origin", "none")
"""Values of `Sec-Fetch-Site` of requests that no other site has started."""


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is that of this machine alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware. `token`: None if only this machine reaches the listener."""

    def __init__(self, app: ASGIApp, token: str | None, wait: Wait = anyio.sleep) -> None:
        self._app = app
        self._token = token
        self._wait = wait
        self._waiting = 0
        self._logged: set[str] = set()
        # The cookie does not show the token.
        self._cookie = None if token is None else hmac.digest(token.encode(), b"aibridge web", hashlib.sha256).hex()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        request = Request(scope, receive)
        refused = self._foreign(request.headers) or await self._unknown(request)
        await (refused or self._app)(scope, receive, send_with_headers)

    def _foreign(self, headers: Headers) -> Response | None:
        """Return the refusal of a request under a foreign name, or from a page of another site."""
        host = _host_of(headers.get("host", ""))
        if self._token is None and not is_loopback(host):
            return PlainTextResponse("This name is not one of this machine: use http://127.0.0.1 or localhost.\n", 421)
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            return PlainTextResponse("Requests of pages of other sites are refused.\n", 403)
        navigates = headers.get("sec-fetch-mode") == "navigate"
        if not navigates and headers.get("sec-fetch-site", "none") not in OWN_SITE:
            return PlainTextResponse("Requests of pages of other sites are refused.\n", 403)
        return None

    async def _unknown(self, request: Request) -> Response | None:
        """Return what a client gets that has not shown the token: the form for it, or the answer to the form."""
        if self._token is None or self._cookie is None or request.url.path.startswith(STATIC):
            return None
        if request.url.path == LOGIN and request.method == "POST":
            return await self._log_in(request, self._token, self._cookie)
        if _equal(request.cookies.get(COOKIE, ""), self._cookie):
            return None
        given = request.headers.get("authorization", "")
        if given.startswith("Bearer "):
            return await self._refusal(request, given.removeprefix("Bearer "), self._token, _missing())
        if request.url.path == LOGIN:
            return None
        return RedirectResponse(LOGIN, 303) if "text/html" in request.headers.get("accept", "") else _missing()

    async def _log_in(self, request: Request, token: str, cookie: str) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_FORM:
                return PlainTextResponse("The form is too long.\n", 413)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        if refused := await self._refusal(request, given, token, RedirectResponse(f"{LOGIN}?wrong=1", 303)):
            return refused
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", secure=secure, path="/")
        return answer

    async def _refusal(self, request: Request, given: str, token: str, wrong: Response) -> Response | None:
        """Return `wrong` after a delay if the token is not the one. None: it is."""
        if self._waiting >= MAX_WAITING:
            return PlainTextResponse("Too many wrong tokens: try again.\n", 429, {"Retry-After": "1"})
        if _equal(given, token):
            return None
        address = one_line(request.client.host if request.client else "", MAX_ADDRESS)
        if address not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(address)
            logger.warning("aibridge web: a wrong token from %s; further ones from there are not logged", address)
        self._waiting += 1
        try:
            await self._wait(DELAY)
        finally:
            self._waiting -= 1
        return wrong


def _missing() -> Response:
    headers = {"WWW-Authenticate": 'Bearer realm="aibridge web"'}
    return PlainTextResponse("A token is needed: Authorization: Bearer …\n", 401, headers)


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _host_of(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""
