"""Prepare a request for the upstream right before each attempt and each turn: set the credential and actor headers.

each attempt ─▶ aibridge_dispatch hook ─▶ prepare ─▶ the flow's request has the hint of each secret
                                             └────▶ Dispatch.secrets ─▶ only the copy that goes upstream has them
"""

from __future__ import annotations

import asyncio
from urllib.parse import unquote_plus

from mitmproxy import http
from pydantic import SecretStr

from aibridge_addon.credentials.client import mask
from aibridge_addon.credentials.identity import CREDENTIAL_HEADERS
from aibridge_addon.credentials.key_pool import Exhausted, Key
from aibridge_addon.dialects import MESSAGES
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.attempts import Fault
from aibridge_addon.interception.routing import Route
from aibridge_addon.proxy.flow.bedrock import Untranslatable, to_bedrock
from aibridge_addon.proxy.flow.http1 import HTTP_1_0, host_header
from aibridge_addon.proxy.flow.state import (
    CENTRAL_KEY,
    Dispatch,
    Head,
    Refusal,
    Served,
    refuse,
    state_of,
)
from aibridge_addon.records import KeysExhausted
from aibridge_addon.tools.caller import printable

ACTOR_HEADERS = "X-AI-Bridge-Actor-"
"""Prefix of the bridge's own headers. A client's headers with this prefix are removed, so it cannot forge them."""
NOT_WITH_CENTRAL_KEY = (
    *(name.decode() for name in CREDENTIAL_HEADERS),
    *("openai-organization", "openai-project", "x-goog-user-project", "cookie"),
    *("x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"),
)
"""Headers of a client that are removed when a central key is set. They have a second credential, name an account, or
change the request."""
CREDENTIAL_PARAMETERS = frozenset({"key", "api_key", "api-key", "access_token", "subscription-key"})
"""Names in a query that may have a credential (Google's APIs, Azure API Management). Removed like these headers."""
CONNECTION_OPTIONS = frozenset({"close", "keep-alive", "upgrade"})
FRAMING = frozenset({"content-length", "transfer-encoding", "host", "upgrade"})
"""Headers that stay although `Connection` names them: without them, the request would be another one."""
REFUSED = "the provider refuses this request"
PROXY_AUTHORIZATION = "proxy-authorization"
AWS_CREDENTIALS = ("authorization", "x-amz-security-token")
"""Headers with the credentials of a Bedrock request: a bearer token, or a signature and a session token."""


def is_needed(head: Head) -> bool:
    """Return whether a request has to be prepared at all."""
    return (
        head.dispatch.attempts.pool is not None
        or head.route.provider.send_actor_headers
        or head.dispatch.translation is not None
    )


async def prepare(flow: http.HTTPFlow) -> None:
    """Prepare `flow.request` for the next attempt or turn. Refuse it if that is not possible.

    This may be called many times for a flow.
    """
    state = state_of(flow)
    assert isinstance(state, Served)
    state.head.dispatch.secrets = {}
    try:
        await _prepare(flow, state)
    finally:
        _conceal(flow, state.head)


async def _prepare(flow: http.HTTPFlow, state: Served) -> None:
    head, attempts, translation = state.head, state.head.dispatch.attempts, state.head.dispatch.translation
    if (fault := attempts.fault) is not None:
        refuse(flow, state, _refused(fault))
        return
    if attempts.pool is not None and head.route.provider.owns(
        flow.request.scheme, flow.request.host, flow.request.port
    ):
        key = attempts.choose_key()
        if key is None:
            exhausted = attempts.exhausted()
            head.bridge.emit(KeysExhausted(head.route.provider.name, exhausted.reason))
            refuse(flow, state, _all_rest(exhausted))
            return
        _authenticate(flow.request, head.route, key)
    else:
        attempts.key = None
    if translation is not None:  # AWS gets only the headers that it needs, so no actor headers
        try:
            await to_bedrock(flow.request, translation, head.bridge.settings.limits.decoded_body)
        except Untranslatable as e:
            refuse(flow, state, Refusal(e.status, str(e), "not_translated"))
        else:
            key_id = translation.signer.key_id
            attempts.key = Key(0, SecretStr(key_id), mask(key_id))
    elif head.route.provider.send_actor_headers:
        _name_actor(flow.request, head.actor)


def _refused(fault: Fault) -> Refusal:
    """Return the refusal for a request that the provider refuses with every key."""
    return Refusal(fault.status, fault.message or REFUSED, "request_refused", f"{fault.code}: {fault.message}")


def _all_rest(exhausted: Exhausted) -> Refusal:
    """Return the refusal for the case that every central key rests."""
    headers = {} if exhausted.retry_after is None else {"retry-after": str(exhausted.retry_after)}
    return Refusal(exhausted.status, exhausted.message, "keys_exhausted", headers=headers)


def _authenticate(request: http.Request, route: Route, key: Key) -> None:
    _drop_connection_headers(request)
    for name in NOT_WITH_CENTRAL_KEY:
        request.headers.pop(name, None)
    _drop_credential_parameters(request)
    # The client's Host header may name another host at the same address, to which a shared front end would route.
    request.host_header = host_header(request.scheme, request.host, request.port)
    header = _key_header(route)
    _set(request, header, _as_credential(header, key.secret.get_secret_value()))


def _drop_credential_parameters(request: http.Request) -> None:
    path, mark, query = request.path.partition("?")
    if not mark:
        return
    pairs = query.split("&")
    kept = [pair for pair in pairs if unquote_plus(pair.partition("=")[0]).lower() not in CREDENTIAL_PARAMETERS]
    if len(kept) < len(pairs):
        request.path = path + mark * bool(kept) + "&".join(kept)


def _drop_connection_headers(request: http.Request) -> None:
    """Remove the headers that `Connection` names (RFC 9110, section 7.6.1). A server in front would drop our key."""
    named = [option.strip().lower() for line in request.headers.get_all("connection") for option in line.split(",")]
    if not named:
        return
    for name in {*named} - CONNECTION_OPTIONS - FRAMING:
        request.headers.pop(name, None)
    kept = [option for option in dict.fromkeys(named) if option in CONNECTION_OPTIONS]
    if kept != named:
        request.headers.pop("connection", None)
        if kept:
            request.headers["connection"] = ", ".join(kept)


def _conceal(flow: http.HTTPFlow, head: Head) -> None:
    """Replace each secret by its hint. mitmproxy's log with `--flow-detail 2`, `-w`, mitmweb and other addons read it.

    Nothing is awaited between a secret and its hint, so nothing else sees the flow with the secret.
    """
    chosen, request = head.dispatch, flow.request
    hints = {}
    if chosen.translation is not None:
        hints = {name: mask(request.headers[name]) for name in AWS_CREDENTIALS if name in request.headers}
    elif chosen.attempts.key is not None:
        header = _key_header(head.route)
        hints = {header: _as_credential(header, chosen.attempts.key.hint)} if header in request.headers else {}
    if hints:
        flow.metadata[CENTRAL_KEY] = True
    for name, hint in hints.items():
        chosen.secrets[name] = request.headers[name]
        request.headers[name] = hint


def for_upstream(request: http.Request, chosen: Dispatch) -> http.Request:
    """Return the request as the upstream gets it: with the secrets that the flow does not show, and in HTTP/1.1."""
    if PROXY_AUTHORIZATION in request.headers:
        chosen.upstream_proxy = request.headers.pop(PROXY_AUTHORIZATION)
    if not chosen.secrets and chosen.upstream_proxy is None and request.http_version != HTTP_1_0:
        return request
    sent = request.copy()
    if chosen.upstream_proxy is not None:
        sent.headers[PROXY_AUTHORIZATION] = chosen.upstream_proxy
    if sent.http_version == HTTP_1_0:
        sent.http_version = "HTTP/1.1"
    for name, value in chosen.secrets.items():
        sent.headers[name] = value
    return sent


def _key_header(route: Route) -> str:
    """Return the header that has the provider's key."""
    kind = route.type
    return (kind.messages_key_header if route.errors is MESSAGES else None) or kind.key_header


def _as_credential(header: str, key: str) -> str:
    return f"Bearer {key}" if header == "Authorization" else key


def _name_actor(request: http.Request, actor: Actor) -> None:
    _set(request, f"{ACTOR_HEADERS}ID", actor.id)
    for name, value in actor.metadata.items():
        _set(request, f"{ACTOR_HEADERS}Metadata-{name}", str(value))


def _set(request: http.Request, name: str, value: str) -> None:
    """Set a header. Replace line breaks and the like, because a user name could otherwise add another header."""
    request.headers[name.lower() if request.is_http2 or request.is_http3 else name] = printable(value).strip()


async def pause(flow: http.HTTPFlow) -> None:
    """Wait before the next attempt, for at most one keep-alive interval; see `Dispatch.pause`."""
    state = state_of(flow)
    if not isinstance(state, Served):
        return
    chosen = state.head.dispatch
    if chosen.pause is None:
        if not chosen.attempts.pause:
            return
        chosen.pause = asyncio.create_task(asyncio.sleep(chosen.attempts.pause))
    await asyncio.wait({chosen.pause}, timeout=state.head.bridge.settings.mcp.keepalive_interval)
    if chosen.pause.done():
        chosen.pause = None
