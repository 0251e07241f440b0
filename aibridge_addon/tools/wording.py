"""Describe errors of MCP servers without the configuration's secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qsl, urlsplit

import httpx2
from mcp import MCPError
from pydantic import ValidationError

from aibridge_addon.config.schema import HttpServer, StdioServer
from aibridge_addon.tools.header_command import HeaderCommandError
from aibridge_addon.tools.http_client import OldTransport
from aibridge_addon.tools.oauth.credential import LoginRequired, TokenUnavailable
from aibridge_addon.wire.printable import printable_line

MIN_SECRET = 6
"""Characters. Shorter values are not masked in messages: they would match ordinary words."""
MAX_REASON = 300
"""Characters of a server's text in a log line."""
MAX_ERROR = 4096
"""Characters of a server's error that a model gets."""
NO_HEADERS = "its headers_command has yielded no headers"
NO_LOGIN = "the actor has to log in"
NOT_RENEWED = "the actor's token cannot be had now"
REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (HeaderCommandError, NO_HEADERS),
    (LoginRequired, NO_LOGIN),
    (TokenUnavailable, NOT_RENEWED),
    (httpx2.TimeoutException, "it did not answer in time"),
    (httpx2.TransportError, "it cannot be reached"),
    (FileNotFoundError, "its command was not found: name its full path, or put its folder on PATH"),
    (PermissionError, "its command may not be run"),
    (ValidationError, "its answer is not valid MCP"),
)


class Lost(Exception):
    """The connection is lost. The text says why."""


class Wording:
    def __init__(self, settings: HttpServer | StdioServer, fresh: Callable[[], Iterable[str]] = tuple) -> None:
        """`fresh` returns further secrets, which change."""
        self._secrets = sorted(_secrets(settings), key=len, reverse=True)
        self._fresh = fresh

    def masked(self, text: str) -> str:
        """Replace the configuration's secrets in a text."""
        for secret in (*self._secrets, *(each for each in self._fresh() if len(each) >= MIN_SECRET)):
            text = text.replace(secret, "[redacted]")
        return text

    def reason(self, error: BaseException) -> str:
        """Describe an error in one short line. Texts of the server appear only from MCP errors."""
        error = cause(error)
        if isinstance(error, MCPError):
            return printable_line(self.masked(" ".join(error.message.split()))[:MAX_REASON])
        if isinstance(error, OldTransport | Lost):
            return str(error)
        known = (text for kind, text in REASONS if isinstance(error, kind))
        return next(known, type(error).__name__)

    def whole(self, error: MCPError) -> str:
        """Return a server's error for a model."""
        text = self.masked(error.message)
        return text if len(text) <= MAX_ERROR else text[:MAX_ERROR] + "…"


def is_about_credential(reason: str) -> bool:
    """Return whether a reason is about the credential of a connection, and not about the server."""
    own = (NO_HEADERS, NO_LOGIN, NOT_RENEWED)
    return reason in own or reason.endswith(tuple(f"(HTTP {status})" for status in (401, 403)))


def cause(error: BaseException) -> BaseException:
    """Return the first error of nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _secrets(settings: HttpServer | StdioServer) -> Iterator[str]:
    """Yield every text of the configuration that must not appear in logs or results."""
    if isinstance(settings, HttpServer):
        url = settings.url.get_secret_value()
        parts = urlsplit(url)
        texts = [url, parts.query, parts.password or "", *(value for _, value in parse_qsl(parts.query))]
        texts += [word for value in settings.headers.values() for word in value.get_secret_value().split()]
    else:
        texts = [*settings.args, *(value.get_secret_value() for value in settings.env.values())]
    yield from (text for text in texts if len(text) >= MIN_SECRET)
