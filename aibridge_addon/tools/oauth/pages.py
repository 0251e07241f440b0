"""What a browser sees of a login: plain pages without scripts.

GET /mcp/login/<server>?ticket=…               to the authorization server
GET /mcp/login/<server>/callback?code=…        back from there
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from html import escape
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from types import MappingProxyType
from urllib.parse import parse_qsl, urlsplit

from aibridge_addon.records import DatabaseUnavailable
from aibridge_addon.records.pages import PageAnswer, PageRequest
from aibridge_addon.tools.oauth import OAuthError
from aibridge_addon.tools.oauth.logins import LIFETIME, Logins

logger = logging.getLogger(__name__)

MAX_FIELDS = 20
"""Parameters of a query."""
SAFE: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'",
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
)
"""Headers of each page. The URL has a ticket or a code, which must not go to other places."""

_PATH = re.compile(r"/mcp/login/([A-Za-z0-9_-]{1,200})(/callback)?/?")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><meta name="robots" content="noindex">
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 36rem; margin: 4rem auto; padding: 0 1rem;
color-scheme: light dark }}</style></head>
<body><h1>{title}</h1>{text}</body></html>
"""


class LoginPages:
    """Used on one event loop."""

    def __init__(self, logins: Logins) -> None:
        self._logins = logins

    async def answer(self, request: PageRequest) -> PageAnswer:
        """Answer a request of a browser."""
        match = _PATH.fullmatch(request.path)
        if match is None or not self._logins.has(match[1]):
            return _page(HTTPStatus.NOT_FOUND, "Not found", "There is no such page.")
        if "prefetch" in request.purpose:
            return _page(HTTPStatus.SERVICE_UNAVAILABLE, "Not now", "This page cannot be fetched in advance.")
        if request.method == "HEAD":
            return _page(HTTPStatus.OK, "Log in", "Open this page in a browser.")
        server_name, is_callback = match[1], match[2] is not None
        try:
            query = _query(request.query)
            if is_callback:
                finished = await self._logins.finish(server_name, query, _cookie(request, server_name))
                return _page(
                    HTTPStatus.OK,
                    f"You are logged in at {server_name}",
                    f"{finished.actor} can use its tools now. You can close this page and go on in your client.",
                    f"If you are not {finished.actor}, ask your administrator to undo this"
                    f" (aibridge tools logout {server_name} --actor …).",
                    headers={"Set-Cookie": self._set_cookie(server_name, "", 0)},
                )
            return await self._begun(server_name, query)
        except OAuthError as e:
            logger.info("MCP server %s: a login has failed: %s", server_name, e)
            return _page(HTTPStatus.BAD_REQUEST, f"The login at {server_name} has failed", str(e))
        except DatabaseUnavailable as e:
            logger.warning("MCP server %s: a login cannot go on: %s", server_name, e)
            return _page(HTTPStatus.SERVICE_UNAVAILABLE, "Not now", "The database is away. Try again in a few minutes.")

    async def _begun(self, server_name: str, query: Mapping[str, str]) -> PageAnswer:
        ticket = query.get("ticket", "")
        if not self._logins.is_local and query.get("confirmed") != "1":
            # Others could send their own link to a person, whose login would then be theirs.
            actor = await self._logins.owner(server_name, ticket)
            target = f"?ticket={escape(ticket)}&amp;confirmed=1"
            return _page(
                HTTPStatus.OK,
                f"Log in at {server_name}",
                f"This login gives {actor} access to {server_name}, in your name.",
                f"Go on only if you are {actor}, and have asked for this link yourself.",
                more=f'<p><a href="{target}" rel="noreferrer">I am {escape(actor)}: log in</a></p>',
            )
        begun = await self._logins.begin(server_name, ticket)
        headers = {
            "Location": begun.location,
            "Set-Cookie": self._set_cookie(server_name, begun.cookie, round(LIFETIME.total_seconds())),
        }
        return _page(HTTPStatus.SEE_OTHER, "Log in", "Your browser goes to the authorization server.", headers=headers)

    def _set_cookie(self, server_name: str, value: str, max_age: int) -> str:
        base = urlsplit(self._logins.base_url)
        secure = "; Secure" if base.scheme == "https" else ""
        path = f"{base.path}/mcp/login/{server_name}"
        return f"{_name(server_name)}={value}; Max-Age={max_age}; Path={path}; HttpOnly; SameSite=Lax{secure}"


def _name(server_name: str) -> str:
    return f"aibridge_login_{server_name}"


def _cookie(request: PageRequest, server_name: str) -> str:
    try:
        found = SimpleCookie(request.cookie).get(_name(server_name))
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _query(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise OAuthError("The address of this page cannot be read.") from None
    found = dict(pairs)
    if len(found) != len(pairs):  # RFC 6749, section 3.1: parameters must not be sent more than once
        raise OAuthError("The address of this page has a parameter twice.")
    return found


def _page(
    status: HTTPStatus, title: str, *texts: str, more: str = "", headers: Mapping[str, str] | None = None
) -> PageAnswer:
    text = "".join(f"<p>{escape(each)}</p>" for each in texts) + more
    body = PAGE.format(title=escape(title), text=text).encode("utf-8", "replace")
    return PageAnswer(status, {"Content-Type": "text/html; charset=utf-8", **SAFE, **(headers or {})}, body)
