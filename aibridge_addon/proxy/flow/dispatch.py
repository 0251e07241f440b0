"""What makes a request ready for the upstream, right before each attempt and each turn: credential, actor headers.

request head ─▶ choose_credential (once)
each attempt ─▶ aibridge_dispatch hook ─▶ make_ready ─▶ upstream
"""

from __future__ import annotations

import asyncio

from mitmproxy import http
from mitmproxy.net.http import url
from pydantic import SecretStr

from aibridge_addon.bridge import Bridge
from aibridge_addon.config.providers import Provider
from aibridge_addon.credentials.client import brings_credential, mask
from aibridge_addon.credentials.key_pool import Exhausted, Key
from aibridge_addon.dialects import MESSAGES
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.routing import Route
from aibridge_addon.proxy.flow.bedrock import Translation, Untranslatable, to_bedrock
from aibridge_addon.proxy.flow.state import (
    ORIGIN_FORM,
    Dispatch,
    Head,
    Refusal,
    Served,
    refuse,
    state_of,
)
from aibridge_addon.records import Headers

ACTOR_HEADERS = "X-AI-Bridge-Actor-"
"""Only ours reach the upstream: what a client sends under such a name is taken out."""
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "api-key")
"""With a central key, nothing else that could be a credential goes upstream."""
AWS_CREDENTIALS = ("authorization", "x-amz-security-token")
"""What a request to Bedrock is authenticated with: a bearer token, or a signature and the session's token."""


def choose_credential(flow: http.HTTPFlow, route: Route, bridge: Bridge, headers: Headers) -> Dispatch | None:
    """Decide with whose credential a request goes upstream; the client's own always wins.

    Returns:
        None: a gateway request to a route that is not for a provider with central keys.
    """
    provider = route.provider
    # A passthrough is not ours to ask twice, but which central key it has is.
    chosen = Dispatch(Attempts(max_retries=0 if route.dialect is None else provider.max_retries))
    signer = bridge.signers.get(provider.name)
    if signer is not None and route.dialect is MESSAGES and provider.bedrock is not None:
        chosen.translation = Translation(provider.bedrock, signer)
    pool = bridge.key_pools.get(provider.name)
    if pool is None:
        return chosen
    own = brings_credential(headers, route.type.credential_headers)
    if route.known and not own and may_have_central_key(flow.request, route):
        chosen.attempts.pool = pool
        chosen.attempts.choose_key()
    return chosen if route.known or not flow.metadata.get(ORIGIN_FORM) else None


def is_needed(head: Head) -> bool:
    """Whether a request has to be made ready at all."""
    return (
        head.dispatch.attempts.pool is not None
        or head.route.provider.send_actor_headers
        or head.dispatch.translation is not None
    )


async def make_ready(flow: http.HTTPFlow) -> None:
    """Make `flow.request` ready for the upstream attempt or turn that comes next: the first, a retry, a later turn.

    It may be called many times for a flow. A request that cannot be made ready is refused.
    """
    state = state_of(flow)
    assert isinstance(state, Served)
    head, attempts, translation = state.head, state.head.dispatch.attempts, state.head.dispatch.translation
    if attempts.pool is not None and may_have_central_key(flow.request, head.route):
        key = attempts.choose_key()
        if key is None:
            refuse(flow, state, _all_rest(attempts.pool.exhausted()))
            return
        _authenticate(flow.request, head.route, key)
    else:
        attempts.key = None
    if translation is not None:  # AWS gets no headers but those that it needs
        try:
            await to_bedrock(flow.request, translation, head.bridge.settings.limits.decoded_body)
        except Untranslatable as e:
            refuse(flow, state, Refusal(e.status, str(e), "not_translated"))
        else:
            key_id = translation.signer.key_id
            attempts.key = Key(0, SecretStr(key_id), mask(key_id))
    elif head.route.provider.send_actor_headers:
        _name_actor(flow.request, head.actor)


NOT_READY = Refusal(500, "the request could not be made ready for its provider", "not_ready")


def refuse_unready(flow: http.HTTPFlow) -> None:
    """Refuse a request whose preparation failed; it must not be sent half prepared."""
    state = state_of(flow)
    if isinstance(state, Served):
        refuse(flow, state, NOT_READY)
        conceal(flow, state.head)


def _all_rest(exhausted: Exhausted) -> Refusal:
    """Every central key rests."""
    headers = {} if exhausted.retry_after is None else {"retry-after": str(exhausted.retry_after)}
    return Refusal(exhausted.status, exhausted.message, "keys_exhausted", headers=headers)


def may_have_central_key(request: http.Request, route: Route) -> bool:
    """Whether the request goes to the provider itself, by an address that the client has not chosen."""
    return (request.scheme, request.host, request.port) in addresses_of(route.provider)


def addresses_of(provider: Provider) -> list[tuple[str, str, int]]:
    """Scheme, host and port of where a provider's central key may go. A wildcard's hosts may be anybody's."""
    base = provider.base_url
    if base is not None:
        return [(base.scheme, base.host, base.port)]
    return [("https", host, 443) for host in provider.hosts if "*" not in host]


def _authenticate(request: http.Request, route: Route, key: Key) -> None:
    for name in CREDENTIAL_HEADERS:
        request.headers.pop(name, None)
    # A client may name another host at the provider's address, and what stands before many hosts goes by that name.
    request.host_header = url.hostport(request.scheme, request.host, request.port)
    _set_credential(request, route, key.secret.get_secret_value())


def conceal(flow: http.HTTPFlow, head: Head) -> None:
    """Put the key's hint in its place: the request has been sent, and what reads it now needs no key.

    mitmproxy's log with `--flow-detail 2`, `-w`, mitmweb and other addons do. The next attempt is made ready anew.
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
    """Set a header; a name that a user logged in with may hold what would begin another."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value)
    request.headers[name.lower() if request.is_http2 or request.is_http3 else name] = printable.strip()


async def pause(flow: http.HTTPFlow) -> None:
    """An attempt has failed: wait before the next one, at most one keep-alive interval; see `Dispatch.pause`."""
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
