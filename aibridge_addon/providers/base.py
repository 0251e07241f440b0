"""What a type of provider consists of, as data: routes, credentials, error shape, default addresses, price list."""

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


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """Where a provider's requests go."""

    scheme: str
    host: str
    port: int
    path: str = ""
    """Begins with a slash, ends without; empty for the root."""

    @property
    def origin(self) -> str:
        """Scheme, host and, where it is not the scheme's own, port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return f"{self.scheme}://{host}" + ("" if self.port == default else f":{self.port}")

    def __str__(self) -> str:
        return self.origin + self.path


def https(host: str, path: str = "") -> BaseUrl:
    """The base URL of a vendor's API."""
    return BaseUrl("https", host, 443, path)


@dataclass(frozen=True, slots=True)
class DefaultProvider:
    """A provider of the default configuration."""

    name: str
    hosts: tuple[str, ...]
    base_url: BaseUrl | None = None
    """None: requests go to the host that the client asked for."""


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
    defaults: tuple[DefaultProvider, ...]
    """The first one also lends its addresses to a configured provider that leaves them out."""
    price_list: str | None
    """What `genai-prices` calls this vendor; None: no price is known."""
    credential_headers: tuple[bytes, ...]
    """Where a client puts its credential, in order of precedence; lower case."""
    key_header: str = "Authorization"
    """Where a central key goes."""
    messages_key_header: str | None = None
    """Where it goes in requests of Anthropic's dialect, if elsewhere."""
    refuses_central_key: str | None = None
    """Why the configuration may not have an `api_key` for it; None: it may."""
    answers_on_bedrock: bool = False
    """The configuration may have a `bedrock` block: Bedrock then answers its Messages requests."""
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
