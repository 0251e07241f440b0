"""Find the provider, the dialect and the upstream address for a host, a method and a path.

Routes are relative to the path of a provider's base URL. A proxied request has the vendor's own host and path. A
gateway request has `/<provider>`, followed by the path of the vendor's API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import unquote

from aibridge_addon.config.providers import Provider
from aibridge_addon.dialects import RESPONSES
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.interception.paths import normalised, read_most_freely
from aibridge_addon.providers import TYPES
from aibridge_addon.providers.base import BaseUrl, ProviderType, ResultOf

OTHER = "other"
WEBSOCKET = "GET with Upgrade: websocket"
"""Replaces the method of a request for a WebSocket."""
KEYED_METHODS = frozenset({"GET", "HEAD", "POST"})
"""Only requests with these methods get a central key. Others remove or change what belongs to all users of the key, or
return the key (TRACE)."""
FREE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
"""Requests with these methods read or remove something, which providers do not bill."""
MAX_DEPTH = 8
"""Segments of a path below which the API of an OpenAI-compatible server is looked for."""
MAX_HOST = 255
"""Characters. The longest host name that DNS has (RFC 1035, section 2.3.4), with a dot at its end."""
GATEWAY_PREFIX = "/api/v2/aibridge"
"""Optional prefix of gateway paths."""


@dataclass(frozen=True, slots=True)
class Route:
    """The destination of a request, and whether it is an interception."""

    provider: Provider
    type: ProviderType
    dialect: Dialect | None
    """The dialect of a bridged route; None for passthrough."""
    template: str
    """The route as rows and metrics show it."""
    base: BaseUrl | None
    """Scheme, host and port of the upstream; None: those in the client's request."""
    target: str
    """Path and query of the upstream request."""
    websocket: Dialect | None = None
    """The dialect of the WebSocket that the request asks for; the request itself is passthrough."""
    known: bool = False
    """A central key may be used: the path and the method are in the provider type's table."""
    model: str = ""
    """The model in the path, decoded; empty if the body has it."""
    result_of: ResultOf | None = None
    """The earlier work whose result the answer may bring. The request itself is passthrough."""
    result_id: str = ""
    """The id of that work."""
    results: Dialect | None = None
    """The dialect that reads such an answer."""
    counts: Dialect | None = None
    """The dialect of the request whose tokens are counted. The request itself is passthrough."""
    billable: bool = False
    """A passthrough request may cost money, which no row shows."""
    deployment: str = ""
    """The name in the path of an Azure deployment, decoded."""

    @property
    def is_interception(self) -> bool:
        """Whether the request, its answer or the messages of its WebSocket are recorded."""
        return self.dialect is not None or self.websocket is not None or self.results is not None

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def errors(self) -> Dialect:
        return self.dialect or self.websocket or self.type.error_dialect


class Router:
    """Finds providers by host and by name. Clients choose the hosts, so the cache is bounded."""

    def __init__(self, providers: Iterable[Provider]) -> None:
        self._by_name = {provider.name: provider for provider in providers}
        self._patterns = [(host_pattern(h), p, p.stays(h)) for p in self._by_name.values() for h in p.hosts]
        self._owner_of_host = lru_cache(maxsize=1024)(self._find_owner_of_host)

    def provider_for_host(self, host: str) -> Provider | None:
        """Return the provider that a host belongs to."""
        return self._owner(host)[0]

    def is_redirected(self, host: str) -> bool:
        """Return whether requests to a host go to the base URL of its provider, so that the host is not dialled."""
        provider, stays = self._owner(host)
        return provider is not None and provider.base_url is not None and not stays

    def _owner(self, host: str) -> tuple[Provider | None, bool]:
        # With several `*`, a pattern takes quadratic time for a long name, and clients choose the name.
        return self._owner_of_host(host) if len(host) <= MAX_HOST else (None, False)

    def _find_owner_of_host(self, host: str) -> tuple[Provider | None, bool]:
        """Return the provider of a host, and whether its requests stay there in spite of the base URL."""
        host = host.lower().rstrip(".")
        found = ((provider, stays) for pattern, provider, stays in self._patterns if pattern.fullmatch(host))
        return next(found, (None, False))

    def proxied(self, host: str, method: str, target: str) -> Route | None:
        """Return the route of a request to `host`; None if no provider has this host."""
        provider, stays = self._owner(host)
        if provider is None:
            return None
        usual = _usual(target)
        route = _proxied(provider, method, usual)
        if usual != target:
            sent = target if route.target == usual else route.target
            route = replace(route, target=sent, known=route.known and _is_clean(target.partition("?")[0]))
        if _bridged_elsewhere(route, method, target, lambda free: _proxied(provider, method, free)):
            route = replace(route, known=False)
        return replace(route, base=None) if stays else route

    def replayed(self, origin: BaseUrl, method: str, target: str) -> Route | None:
        """Return the route of a request that mitmproxy sends again: it has the address to which it was sent before."""
        owner = (p for p in self._by_name.values() if p.owns(origin.scheme, origin.host, origin.port))
        if (provider := next(owner, None)) is not None:
            return _proxied(provider, method, target)
        return self.proxied(origin.host, method, target)

    def gateway(self, method: str, target: str) -> Route | None:
        """Return the route of a gateway request; None if its path has no provider, or is not below its API's prefix."""
        usual = _usual(target)
        route = self._gateway(method, usual)
        if usual != target:
            as_written = self._gateway(method, target)
            if route is None or not route.is_interception:
                route = as_written or route  # to the provider, the difference may matter
            elif as_written is not None and _is_clean(target.partition("?")[0]):
                route = replace(route, target=as_written.target)
        if route is not None and _bridged_elsewhere(route, method, target, lambda free: self._gateway(method, free)):
            return replace(route, known=False)
        return route

    def is_base_url(self, target: str) -> bool:
        """Return whether a target is the root of the gateway or a provider's part of it, without a route."""
        path = target.partition("?")[0].removeprefix(GATEWAY_PREFIX).strip("/")
        return not path or path in self._by_name

    def _gateway(self, method: str, target: str) -> Route | None:
        below_root = target.removeprefix(GATEWAY_PREFIX) if target.startswith(GATEWAY_PREFIX + "/") else target
        _, _, rest = below_root.partition("/")
        name = re.split(r"[/?]", rest, maxsplit=1)[0]
        provider = self._by_name.get(name)
        base = provider.gateway_url if provider else None
        if provider is None or base is None:
            return None
        remainder = rest[len(name) :]
        if remainder.startswith("/v1/v1/"):
            remainder = remainder.removeprefix("/v1")  # a base URL that ends in /v1, to which the client adds /v1/…
        path = remainder.partition("?")[0]
        below = _below(TYPES[provider.type].prefix, path)
        if below is None or not path:
            return None
        base_path = base.path if provider.base_url else TYPES[provider.type].prefix
        upstream = base_path + remainder[len(path) - len(below) :]
        return _route(provider, method, below, upstream, base)

    def described(self) -> str:
        """Return the providers that the gateway has, each with the routes that it bridges."""
        parts = []
        for name, provider in self._by_name.items():
            if provider.gateway_url is not None:
                templates = dict.fromkeys(route.template for route in TYPES[provider.type].bridged)
                parts.append(f"/{name}: {', '.join(templates)}")
        return "; ".join(parts)


def host_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a host pattern, in which `*` stands for one or more labels."""
    label = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"
    return re.compile(label.join(re.escape(part) for part in pattern.split("*")))


def _usual(target: str) -> str:
    """Return a target with the usual form of its path."""
    path, mark, query = target.partition("?")
    return normalised(path) + mark + query


def _bridged_elsewhere(route: Route, method: str, target: str, find: Callable[[str], Route | None]) -> bool:
    """Return whether a server that reads the path more freely than we do may answer it like a bridged route.

    With a central key, such a request would be paid and not recorded.
    """
    if not route.known or route.is_interception or method not in ("POST", WEBSOCKET):
        return False
    found = find(read_most_freely(target))
    return found is not None and found.is_interception


def _below(prefix: str, path: str) -> str | None:
    """Return `path` without `prefix`; None if it is not below it."""
    if not path.startswith(prefix):
        return None
    rest = path[len(prefix) :]
    return rest if not rest or rest.startswith("/") or not prefix else None


def _proxied(provider: Provider, method: str, target: str) -> Route:
    base_path = provider.base_url.path if provider.base_url else TYPES[provider.type].prefix
    path = target.partition("?")[0]
    below = _below(base_path, path)
    route = _route(provider, method, below, target)
    if route.template != OTHER:
        return route
    if provider.openai_compatible:
        return _below_any_path(provider, method, target)
    below_prefix = _below(TYPES[provider.type].prefix, path)
    if below_prefix is None or (below is not None and base_path):
        return route
    # A server without a path in its base URL, such as DeepSeek's, has the same routes with and without the prefix.
    moved = target if below is not None else base_path + target[len(path) - len(below_prefix) :]
    return _route(provider, method, below_prefix, moved)


def _below_any_path(provider: Provider, method: str, target: str) -> Route:
    """Return the route of a server that may have its API below any path, such as `/serve/llm/v1/chat/completions`."""
    path = target.partition("?")[0]
    starts = [at for at, character in enumerate(path) if character == "/"][:MAX_DEPTH]
    routes = (_route(provider, method, path[start:], target) for start in starts)
    return next((route for route in routes if route.template != OTHER), _route(provider, method, None, target))


def _route(provider: Provider, method: str, below: str | None, target: str, base: BaseUrl | None = None) -> Route:
    kind = TYPES[provider.type]
    route = Route(provider, kind, None, OTHER, base or provider.base_url, target, billable=method not in FREE_METHODS)
    return route if below is None else _matched(route, method, below)


def _matched(unknown: Route, method: str, below: str) -> Route:
    """Return the route of a path below the API's base URL. `unknown` is the route if no table has it."""
    kind = unknown.type
    for result in kind.results:
        if method == result.method and (found := result.pattern.fullmatch(below)):
            return replace(
                unknown,
                template=result.template,
                known=result.central_key and _is_clean(below),
                result_of=result.result_of,
                result_id=unquote(found[1], errors="replace"),
                results=result.dialect,
                billable=False,
            )
    for route in kind.bridged:
        # A GET would list stored objects of other users of the key, so it is not a bridged request.
        over_socket = method == WEBSOCKET and route.dialect is RESPONSES
        if (method == "POST" or over_socket) and (found := route.pattern.fullmatch(below)):
            name = unquote(found[1], errors="replace") if found.re.groups else ""
            return replace(
                unknown,
                dialect=None if over_socket else route.dialect,
                websocket=route.dialect if over_socket else None,
                template=route.template,
                known=route.central_key and _is_clean(below),
                model=name if route.names_model else "",
                deployment="" if route.names_model else name,
                billable=False,
            )
    for known in kind.passthrough:
        if known.pattern.fullmatch(below):
            return replace(
                unknown,
                template=known.template,
                known=known.central_key and method in KEYED_METHODS and _is_clean(below),
                billable=known.billable and unknown.billable,
                counts=known.counts if method == "POST" else None,
            )
    template = next((route.template for route in kind.bridged if route.pattern.fullmatch(below)), OTHER)
    return replace(unknown, template=template)


def _is_clean(path: str) -> bool:
    """Whether every server reads the path alike. A server may normalise `/v1/models/../organization`."""
    if "." not in path and "%" not in path:
        return True
    decoded = unquote(unquote(path))
    return not any(re.fullmatch(r"\.\.?(;.*)?", segment) for segment in re.split(r"[/\\]", decoded))
