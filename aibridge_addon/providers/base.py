"""What sets a type of provider apart from the others, as data: routes, credentials, error shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs

from aibridge_addon.dialects.base import Dialect


@dataclass(frozen=True, slots=True)
class BridgedRoute:
    """POST on a path that matches is an interception."""

    pattern: re.Pattern[str]
    """Matched in full against the path below the provider's base URL."""
    template: str
    """The route as rows and labels show it: bounded, no ids."""
    dialect: Dialect
    names_model: bool = False
    """The first group of the pattern is the model's id, percent-encoded or not."""


@dataclass(frozen=True, slots=True)
class PassthroughRoute:
    """A known path that is forwarded untouched and counted under its template."""

    pattern: re.Pattern[str]
    template: str


def always(_query: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class ProviderType:
    name: str
    prefix: str
    """The path that the vendor's API has below its host (`/v1`): part of base URLs, and of gateway paths."""
    bridged: tuple[BridgedRoute, ...]
    passthrough: tuple[PassthroughRoute, ...]
    error_dialect: Dialect
    """In whose shape errors on passthrough routes are."""
    credential_headers: tuple[bytes, ...]
    """Where a client puts its credential, in order of precedence; lower case."""
    key_header: str = "Authorization"
    """Where a central key goes."""
    messages_key_header: str | None = None
    """Where it goes in requests of Anthropic's dialect, if elsewhere."""
    may_ask_chat_usage: Callable[[str], bool] = always
    """Whether a chat request with this query string may carry `stream_options` (old Azure versions refuse it)."""


def bridged(path: str, dialect: Dialect, *, prefix: str = "", names_model: bool = False) -> BridgedRoute:
    """A bridged route; `{id}` in `path` stands for one segment."""
    return BridgedRoute(_pattern(path), prefix + path, dialect, names_model)


def passthrough(path: str, *, prefix: str = "") -> PassthroughRoute:
    """A passthrough route; a `*` at the end of `path` stands for any rest."""
    return PassthroughRoute(_pattern(path), prefix + path)


def _pattern(path: str) -> re.Pattern[str]:
    escaped = re.escape(path).replace(r"\{id\}", "([^/]+)")
    return re.compile(escaped.removesuffix(r"\*") + ".*" if path.endswith("*") else escaped)


def query_value(query: str, name: str) -> str | None:
    values = parse_qs(query).get(name)
    return values[0] if values else None
