"""What makes a request ready for the upstream, right before each attempt and each turn: credential, actor headers.

request head ─▶ choose_credential (once)
each attempt ─▶ aibridge_dispatch hook ─▶ dispatch ─▶ upstream
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

from mitmproxy import http
from mitmproxy.net.http import url
from pydantic import SecretStr

from aibridge_addon.config.providers import Provider
from aibridge_addon.credentials.client import brings_credential, mask
from aibridge_addon.credentials.key_pool import Exhausted, Key
from aibridge_addon.dialects import MESSAGES
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.routing import Route
from aibridge_addon.proxy.flow.bedrock import Translation, Untranslatable, to_bedrock
from aibridge_addon.proxy.flow.state import ORIGIN_FORM, FlowState, error_response, state_of

ACTOR_HEADERS = "X-AI-Bridge-Actor-"
"""Only ours reach the upstream: what a client sends under such a name is taken out."""
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "api-key")
"""With a central key, nothing else that could be a credential goes upstream."""
AWS_CREDENTIALS = ("authorization", "x-amz-security-token")
"""What a request to Bedrock is authenticated with: a bearer token, or a signature and the session's token."""


def choose_credential(flow: http.HTTPFlow, state: FlowState) -> bool:
    """Decide with whose credential a request goes upstream; the client's own always wins.

    Returns:
        False: a gateway request to a route that is not for a provider with central keys.
    """
    route = state.route
    pool = state.bridge.key_pools.get(route.provider.name)
    signer = state.bridge.signers.get(route.provider.name)
    if signer is not None and route.dialect is MESSAGES and route.provider.bedrock is not None:
        state.translation = Translation(route.provider.bedrock, signer)
    # A passthrough is not ours to ask twice, but which central key it has is.
    state.attempts = Attempts(max_retries=0 if route.dialect is None else route.provider.max_retries)
    if pool is None:
        return True
    own = brings_credential(state.headers, route.type.credential_headers)
    if route.known and not own and may_have_central_key(flow.request, route):
        state.attempts.pool = pool
        state.attempts.choose_key()
    return route.known or not flow.metadata.get(ORIGIN_FORM)


def is_needed(state: FlowState) -> bool:
    """Whether a request has to be made ready at all."""
    return state.attempts.pool is not None or state.route.provider.send_actor_headers or state.translation is not None


async def dispatch(flow: http.HTTPFlow) -> None:
    """Make `flow.request` ready for the upstream attempt or turn that comes next: the first, a retry, a later turn.

    It may be called many times for a flow, and sets `flow.response` where nobody is to be asked.
    """
    state = state_of(flow)
    assert state is not None
    pool = state.attempts.pool
    if pool is not None and may_have_central_key(flow.request, state.route):
        key = state.attempts.choose_key()
        if key is None:
            _exhausted(flow, state, pool.exhausted())
            return
        _authenticate(flow.request, state.route, key)
    else:
        state.attempts.key = None
    if state.translation is not None:  # AWS gets no headers but those that it needs
        try:
            await to_bedrock(flow.request, state.translation, state.bridge.settings.limits.decoded_body)
        except Untranslatable as e:
            _refuse(flow, state, e.status, str(e), "not_translated")
        else:
            key_id = state.translation.signer.key_id
            state.attempts.key = Key(0, SecretStr(key_id), mask(key_id))
    elif state.route.provider.send_actor_headers:
        _name_actor(flow.request, state)


def refuse_unready(flow: http.HTTPFlow) -> None:
    """What makes requests ready has failed: as it is, this one goes to nobody."""
    state = state_of(flow)
    assert state is not None
    _refuse(flow, state, 500, "the request could not be made ready for its provider", "not_ready")


def _exhausted(flow: http.HTTPFlow, state: FlowState, exhausted: Exhausted) -> None:
    """Every central key rests: nobody is asked."""
    headers = {} if exhausted.retry_after is None else {"retry-after": str(exhausted.retry_after)}
    _refuse(flow, state, exhausted.status, exhausted.message, "keys_exhausted", headers)


def _refuse(
    flow: http.HTTPFlow,
    state: FlowState,
    status: int,
    message: str,
    error_type: str,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> None:
    state.refused = True
    state.refusal = message
    flow.response = error_response(state.route.errors, status, message, headers)
    if state.exchange is not None:
        state.exchange.end(error_type, message)


def may_have_central_key(request: http.Request, route: Route) -> bool:
    """Whether the request goes to the provider itself, by an address that no client has chosen."""
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


def conceal(flow: http.HTTPFlow, state: FlowState) -> None:
    """Put the key's hint in its place: the request has been sent, and whoever looks at it now needs no key.

    mitmproxy's log with `--flow-detail 2`, `-w`, mitmweb and other addons do look. The next attempt is made ready anew.
    """
    if state.translation is not None:
        for name in AWS_CREDENTIALS:
            if name in flow.request.headers:
                flow.request.headers[name] = mask(flow.request.headers[name])
    elif state.attempts.key is not None:
        _set_credential(flow.request, state.route, state.attempts.key.hint)


def _set_credential(request: http.Request, route: Route, credential: str) -> None:
    kind = route.type
    header = (kind.messages_key_header if route.errors is MESSAGES else None) or kind.key_header
    _set(request, header, f"Bearer {credential}" if header == "Authorization" else credential)


def _name_actor(request: http.Request, state: FlowState) -> None:
    assert state.actor is not None
    _set(request, f"{ACTOR_HEADERS}ID", state.actor.id)
    for name, value in state.actor.metadata.items():
        _set(request, f"{ACTOR_HEADERS}Metadata-{name}", str(value))


def _set(request: http.Request, name: str, value: str) -> None:
    """Set a header; a name that somebody logged in with may hold what would begin another."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value)
    request.headers[name.lower() if request.is_http2 or request.is_http3 else name] = printable.strip()


async def pause(flow: http.HTTPFlow) -> None:
    """An attempt has failed: wait before the next one, at most one keep-alive interval; see `FlowState.pausing`."""
    state = state_of(flow)
    assert state is not None
    if state.pause is None:
        if not state.attempts.pause:
            return
        state.pause = asyncio.create_task(asyncio.sleep(state.attempts.pause))
    await asyncio.wait({state.pause}, timeout=state.bridge.settings.mcp.keepalive_interval)
    state.pausing = not state.pause.done()
    if not state.pausing:
        state.pause = None
