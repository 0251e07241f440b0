"""Tokens of the bridge in a request: take them out of its head, and answer one that does not count.

head ─▶ take (from now on, the flow has no token) ─▶ the bridge's cache of tokens ─▶ Grant, or a refusal
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mitmproxy import http

from aibridge_addon.credentials.tokens import (
    Presented,
    RefusedToken,
    find_tokens,
    has_token,
    presented_in,
    without_tokens,
)
from aibridge_addon.interception.routing import Route
from aibridge_addon.proxy.flow.state import Refusal, error_response, plain_error

CHALLENGE = 'Basic realm="aibridge"'
RETRY_AFTER: Mapping[str, str] = MappingProxyType({"retry-after": "5"})
ERROR_TYPE = "token_refused"
"""Error type of an interception whose token does not count any more."""
MISSING_OR_WRONG = "a token, or user name and password, is missing or wrong"
MISSING = "a token is missing"
IN_URL = "a token of the bridge does not belong in a URL: send it as an API key"


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request's head had."""

    as_key: Presented | None = None
    """The token that was given as an API key, or in the user part of a base URL."""
    as_password: Presented | None = None
    """The token that was given as the password of a proxy."""
    in_url: bool = False

    @property
    def token(self) -> Presented | None:
        """The token that counts."""
        return self.as_key or self.as_password


NOTHING_TAKEN = Taken()


def take(flow: http.HTTPFlow) -> Taken:
    """Remove all tokens from a request. They are in no log, dump or upstream request after that."""
    request = flow.request
    found = find_tokens(request.headers.fields)
    if found is not None:
        request.headers.fields = found.others
    in_url = has_token(request.data.path) or has_token(request.data.authority)
    if in_url:
        request.data.path = without_tokens(request.data.path)
        request.data.authority = b""
    # With `--proxyauth any`, mitmproxy has moved user and password from the header to the metadata.
    accepted = flow.metadata.get("proxyauth")
    accepted_token = presented_in(*accepted) if accepted else None
    if accepted_token is not None:
        del flow.metadata["proxyauth"]
    if found is None and accepted_token is None and not in_url:
        return NOTHING_TAKEN
    if found is None:
        return Taken(None, accepted_token, in_url)
    return Taken(found.as_key, found.as_password or accepted_token, in_url)


def refusal_of(refused: RefusedToken, *, proxy: bool) -> Refusal:
    """Return the answer to a token that does not count. `proxy`: it was given as the password of a proxy."""
    if refused.unavailable:
        return Refusal(503, refused.message, ERROR_TYPE, headers=RETRY_AFTER)
    status, challenge = (407, "proxy-authenticate") if proxy else (401, "www-authenticate")
    return Refusal(status, refused.message, ERROR_TYPE, headers={challenge: CHALLENGE})


def no_central_key(route: Route) -> Refusal:
    """Return the answer to a token without a key, if the bridge has no central key for the request."""
    return Refusal(
        403, f"a token gives no access to this: the bridge has no central key of {route.provider.name} for it"
    )


def refusal_response(route: Route | None, refusal: Refusal) -> http.Response:
    """Create the answer, in the provider's shape if there is one."""
    if route is not None:
        return error_response(route.errors, refusal.status, refusal.message, refusal.headers)
    kind = {400: "invalid_request_error", 503: "api_error"}.get(refusal.status, "authentication_error")
    return plain_error(refusal.status, refusal.message, kind, refusal.headers)


def unauthenticated(route: Route | None, *, proxy: bool, reason: str = MISSING_OR_WRONG) -> http.Response:
    """Return 407 for clients of a proxy, 401 for those of a gateway or in a tunnel, with a Basic challenge."""
    status, challenge = (407, "proxy-authenticate") if proxy else (401, "www-authenticate")
    place = "in the proxy's URL, such as http://USER:TOKEN@HOST:PORT" if proxy else "in the place of the API key"
    message = f"this bridge requires authentication: {reason}. A token can be given {place}"
    return refusal_response(route, Refusal(status, message, headers={challenge: CHALLENGE}))
