"""A provider type as data: routes, credentials, error format, default addresses and price list."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs

from aibridge_addon.credentials.identity import Login
from aibridge_addon.dialects import COMPLETIONS, IMAGES, RESPONSES, SPEECH, USAGE_ONLY
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.records import Billing

ResultOf = Literal["background", "batch", "stored"]
"""Earlier work whose result an answer may bring: a background response, a batch, or the turns of a stored answer."""


@dataclass(frozen=True, slots=True)
class BridgedRoute:
    """A route whose POST requests are interceptions."""

    pattern: re.Pattern[str]
    """Must match the complete path below the provider's base URL."""
    template: str
    """The route as shown in rows and labels. It contains no ids, so the number of values is limited."""
    dialect: Dialect
    names_model: bool = False
    """The first group of the pattern is the model's id, which may be percent-encoded."""
    central_key: bool = True
    """Whether a central key may be used."""


@dataclass(frozen=True, slots=True)
class PassthroughRoute:
    """A known path that is forwarded unchanged and counted under its template."""

    pattern: re.Pattern[str]
    template: str
    billable: bool = False
    """Whether requests that change something (not GET or DELETE) may cost money that no row shows."""
    central_key: bool = True
    counts: Dialect | None = None
    """The dialect of the requests whose tokens a POST counts. None: it counts none."""


@dataclass(frozen=True, slots=True)
class ResultRoute:
    """A route whose answer may bring the result of earlier work. The request itself is a passthrough."""

    method: str
    pattern: re.Pattern[str]
    """The first group is the id of that work."""
    template: str
    result_of: ResultOf
    dialect: Dialect
    """Reads the answer."""
    central_key: bool = True


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """The base URL of a provider's API."""

    scheme: str
    host: str
    port: int
    path: str = ""
    """Begins with a slash and does not end with one. Empty for the root."""

    @property
    def origin(self) -> str:
        """Scheme, host and, unless it is the default, port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return f"{self.scheme}://{host}" + ("" if self.port == default else f":{self.port}")

    def __str__(self) -> str:
        return self.origin + self.path


def https(host: str, path: str = "") -> BaseUrl:
    """Return an https base URL."""
    return BaseUrl("https", host, 443, path)


@dataclass(frozen=True, slots=True)
class DefaultProvider:
    """A provider of the default configuration."""

    name: str
    hosts: tuple[str, ...]
    base_url: BaseUrl | None = None
    """None: requests are sent to the host in the client's request."""


def always(_query: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class ProviderType:
    name: str
    prefix: str
    """The path of the vendor's API below its host (`/v1`). It is part of base URLs and of gateway paths."""
    bridged: tuple[BridgedRoute, ...]
    passthrough: tuple[PassthroughRoute, ...]
    error_dialect: Dialect
    """The format of errors on passthrough routes."""
    defaults: tuple[DefaultProvider, ...]
    """The addresses of the first one are the defaults of configured providers of this type."""
    vendor: str | None
    """Who bills if the host is not known, under the name in the price list. None: not known either."""
    credential_headers: tuple[bytes, ...]
    """Headers with a client's credential, in order of precedence, in lower case."""
    logins: tuple[Login, ...] = ()
    """Tokens of persons, which clients renew within a session."""
    key_header: str = "Authorization"
    """The header for a central key."""
    messages_key_header: str | None = None
    """The header for a central key in Messages requests, if it differs."""
    billing: Billing | None = None
    """Who pays, whatever the credential. None: the form of the credential decides."""
    refuses_central_key: str | None = None
    """Why the configuration may not set an `api_key`. None: it may."""
    answers_on_bedrock: bool = False
    """The configuration may have a `bedrock` block, which sends Messages requests to Bedrock."""
    results: tuple[ResultRoute, ...] = ()
    may_ask_chat_usage: Callable[[str], bool] = always
    """Returns whether chat requests with this query string may have `stream_options`. Old Azure versions refuse it."""


def bridged(
    path: str, dialect: Dialect, *, prefix: str = "", names_model: bool = False, central_key: bool = True
) -> BridgedRoute:
    """Return a bridged route. `{id}` in `path` matches one segment."""
    return BridgedRoute(_pattern(path), prefix + path, dialect, names_model, central_key)


def passthrough(path: str, *, prefix: str = "", billable: bool = False, central_key: bool = True) -> PassthroughRoute:
    """Return a passthrough route. A `*` at the end of `path` matches any rest."""
    return PassthroughRoute(_pattern(path), prefix + path, billable, central_key)


def counting(path: str, dialect: Dialect, *, prefix: str = "", central_key: bool = True) -> PassthroughRoute:
    """Return the route that counts the tokens of a request."""
    return PassthroughRoute(_pattern(path), prefix + path, central_key=central_key, counts=dialect)


def others(*paths: str, prefix: str = "", billable: bool = False) -> tuple[PassthroughRoute, ...]:
    """Return passthrough routes that are known only for their share of the bill. They get no central key."""
    return tuple(passthrough(path, prefix=prefix, billable=billable, central_key=False) for path in paths)


def usage_routes(prefix: str = "", path: str = "", *, names_model: bool = False) -> tuple[BridgedRoute, ...]:
    """Return OpenAI's routes of which only the usage is recorded, below `path`.

    `names_model`: `path` has the model's id, which the answers of some of these routes do not have.
    """
    routes = (
        (IMAGES, names_model, ("/images/generations", "/images/edits", "/images/variations")),
        (SPEECH, names_model, ("/audio/speech",)),
        (USAGE_ONLY, names_model, ("/audio/transcriptions", "/audio/translations")),
        (USAGE_ONLY, False, ("/embeddings", "/moderations")),
        (COMPLETIONS, False, ("/completions",)),
    )
    return tuple(
        bridged(path + end, dialect, prefix=prefix, names_model=named, central_key=False)
        for dialect, named, ends in routes
        for end in ends
    )


def background_routes(prefix: str = "", path: str = "") -> tuple[ResultRoute, ...]:
    """Return the routes of stored responses: those that may bring the end of a background response, and deletion."""
    return (
        result("GET", f"{path}/responses/{{id}}", "background", RESPONSES, prefix=prefix),
        result("POST", f"{path}/responses/{{id}}/cancel", "background", RESPONSES, prefix=prefix),
        result("DELETE", f"{path}/responses/{{id}}", "stored", RESPONSES, prefix=prefix, central_key=False),
    )


def result(
    method: str, path: str, result_of: ResultOf, dialect: Dialect, *, prefix: str = "", central_key: bool = True
) -> ResultRoute:
    return ResultRoute(method, _pattern(path), prefix + path, result_of, dialect, central_key)


def _pattern(path: str) -> re.Pattern[str]:
    escaped = re.escape(path).replace(r"\{id\}", "([^/]+)")
    return re.compile(escaped.removesuffix(r"\*") + ".*" if path.endswith("*") else escaped)


def query_value(query: str, name: str) -> str | None:
    values = parse_qs(query).get(name)
    return values[0] if values else None
