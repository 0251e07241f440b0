"""Prepare a request for the upstream right before each attempt and each turn: set the credential and actor headers.

each attempt ─▶ aibridge_dispatch hook ─▶ prepare ─▶ upstream
"""

from __future__ import annotations

import asyncio

from mitmproxy import http
from mitmproxy.net.http import url
from pydantic import SecretStr

from aibridge_addon.credentials.client import mask
from aibridge_addon.credentials.key_pool import Exhausted, Key
from aibridge_addon.dialects import MESSAGES
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.attempts import Fault
from aibridge_addon.interception.routing import Route
from aibridge_addon.proxy.flow.bedrock import Untranslatable, to_bedrock
from aibridge_addon.proxy.flow.state import (
    Head,
    Refusal,
    Served,
    refuse,
    state_of,
)
from aibridge_addon.records import KeysExhausted

ACTOR_HEADERS = "X-AI-Bridge-Actor-"
"""Prefix of the bridge's own headers. A client's headers with this prefix are removed, so it cannot forge them."""
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "api-key")
"""Removed when a central key is set, so that no second credential reaches the upstream."""
NOT_WITH_CENTRAL_KEY = (
    *("openai-organization", "openai-project", "cookie"),
    *("x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"),
)
"""Headers of a client that are removed when a central key is set. They name an account, or change the request."""
CONNECTION_OPTIONS = frozenset({"close", "keep-alive", "upgrade"})
FRAMING = frozenset({"content-length", "transfer-encoding", "host", "upgrade"})
"""Headers that stay although `Connection` names them: without them, the request would be another one."""
REFUSED = "the provider refuses this request"
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
    head, attempts, translation = state.head, state.head.dispatch.attempts, state.head.dispatch.translation
    if (fault := attempts.fault) is not None:
        refuse(flow, state, _refused(fault))
        return
    if attempts.pool is not None and head.route.provider.owns(
        flow.request.scheme, flow.request.host, flow.request.port
    ):
        key = attempts.choose_key()
        if key is None:
            exhausted = attempts.pool.exhausted(attempts.model)
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


NOT_PREPARED = Refusal(500, "the request could not be prepared for its provider", "not_ready")


def refuse_unprepared(flow: http.HTTPFlow) -> None:
    """Refuse a request whose preparation failed; it must not be sent half prepared."""
    state = state_of(flow)
    if isinstance(state, Served):
        refuse(flow, state, NOT_PREPARED)
        conceal(flow, state.head)


def _refused(fault: Fault) -> Refusal:
    """Return the refusal for a request that the provider refuses with every key."""
    return Refusal(fault.status, fault.message or REFUSED, "request_refused", f"{fault.code}: {fault.message}")


def _all_rest(exhausted: Exhausted) -> Refusal:
    """Return the refusal for the case that every central key rests."""
    headers = {} if exhausted.retry_after is None else {"retry-after": str(exhausted.retry_after)}
    return Refusal(exhausted.status, exhausted.message, "keys_exhausted", headers=headers)


def _authenticate(request: http.Request, route: Route, key: Key) -> None:
    _drop_connection_headers(request)
    for name in (*CREDENTIAL_HEADERS, *NOT_WITH_CENTRAL_KEY):
        request.headers.pop(name, None)
    # The client's Host header may name another host at the same address, to which a shared front end would route.
    request.host_header = url.hostport(request.scheme, request.host, request.port)
    _set_credential(request, route, key.secret.get_secret_value())


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


def conceal(flow: http.HTTPFlow, head: Head) -> None:
    """Replace the key by its hint after the request was sent.

    mitmproxy's log with `--flow-detail 2`, `-w`, mitmweb and other addons read the flow later. The next attempt is
    prepared again.
    """
    if head.dispatch.translation is not None:
        for name in AWS_CREDENTIALS:
            if name in flow.request.headers:
                flow.request.headers[name] = mask(flow.request.headers[name])
    elif head.dispatch.attempts.key is not None:
        _set_credential(flow.request, head.route, head.dispatch.attempts.key.hint)


def _set_credential(request: http.Request, route: Route, credential: str) -> None:
    kind = route.type
    header = (kind.messages_key_header if route.errors is MESSAGES else None) or kind.key_header
    _set(request, header, f"Bearer {credential}" if header == "Authorization" else credential)


def _name_actor(request: http.Request, actor: Actor) -> None:
    _set(request, f"{ACTOR_HEADERS}ID", actor.id)
    for name, value in actor.metadata.items():
        _set(request, f"{ACTOR_HEADERS}Metadata-{name}", str(value))


def _set(request: http.Request, name: str, value: str) -> None:
    """Set a header. Replace line breaks and the like, because a user name could otherwise add another header."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value)
    request.headers[name.lower() if request.is_http2 or request.is_http3 else name] = printable.strip()


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
