"""From a bridged request's body to an interception under way."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace

from mitmproxy import http

from aibridge_addon.credentials.client import client_credential, mask, signs_request
from aibridge_addon.dialects import CHAT_COMPLETIONS, INJECTIONS
from aibridge_addon.dialects.base import UNREAD, RequestReading
from aibridge_addon.dialects.chat_completions.usage import UsageChunkFilter, ask_for_usage
from aibridge_addon.interception import clients
from aibridge_addon.interception.breaker import Breaker
from aibridge_addon.interception.clients import Speaker
from aibridge_addon.interception.exchange import Exchange, Leaves, Origin
from aibridge_addon.proxy.flow import inject_tools
from aibridge_addon.proxy.flow.state import FlowState, error_response, set_body
from aibridge_addon.records import BreakerRejected
from aibridge_addon.wire.codings import CodingError, decode_all
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable

CIRCUIT_OPEN = "circuit breaker is open"
"""In the words of the original."""
MAX_AGENT_LENGTH = 512
"""Characters of a user agent that are kept: a client chooses them."""


def read_request(flow: http.HTTPFlow, state: FlowState) -> Awaitable[None] | None:
    """Begin the interception. Sets `flow.response` where the request is refused."""
    assert state.route.dialect is not None and state.actor is not None
    bridge = state.bridge
    headers = state.headers
    body: JSONObject | None = None
    reading = UNREAD
    try:
        coding = headers.get(b"content-encoding", b"").decode("latin-1")
        content = decode_all(flow.request.raw_content or b"", coding or None, bridge.settings.limits.decoded_body)
        body = JSONObject(content)
        reading = state.route.dialect.read_request(body)
    except NotJSON:
        _refuse(flow, state, 400, "the request body is not JSON")
        return None
    except (CodingError, Unreadable):
        pass
    if state.route.model:
        reading = replace(reading, model=state.route.model)
    elif state.translation is not None:
        reading = replace(reading, model=state.translation.choose(reading.model))
    client = clients.program(headers)
    has_tools = body is not None and state.route.dialect.tools_member in body
    speaker = clients.speaker(client, headers, has_tools=has_tools)
    state.exchange = exchange_for(state, reading, client, speaker)
    if body is not None and bridge.continuations is not None and _takes_tools(state):
        return _begin_with_tools(flow, state, body, reading, speaker)
    return _begin(flow, state, body, reading)


def exchange_for(state: FlowState, reading: RequestReading, client: clients.Program, speaker: Speaker) -> Exchange:
    """The interception that a request of this flow begins."""
    assert state.actor is not None
    bridge, headers = state.bridge, state.headers
    for_itself = reading.side_call or speaker is not Speaker.PERSON
    central = _central_hint(state)
    credential = client_credential(headers, state.route.type.credential_headers)
    agent = headers.get(b"user-agent")
    return Exchange(
        state.route,
        reading,
        Origin(
            actor=state.actor,
            client=client.name,
            client_session_id=clients.session_id(client, headers, reading.metadata_user_id),
            user_agent=agent.decode("utf-8", "replace")[:MAX_AGENT_LENGTH] if agent is not None else None,
            credential_kind="byok" if central is None else "centralized",
            credential_hint=mask(credential or "") if central is None else central,
            prompt=None if for_itself else reading.prompt,
        ),
        emit=bridge.emit,
        limits=bridge.settings.limits,
        leaves=_leaves(state),
        attempts=state.attempts,
    )


def _central_hint(state: FlowState) -> str | None:
    """What may be shown of the bridge's own credential; None: the client's is used."""
    if state.translation is not None:
        return mask(state.translation.signer.key_id)
    if state.attempts.pool is None:
        return None
    return state.attempts.key.hint if state.attempts.key is not None else ""


def _takes_tools(state: FlowState) -> bool:
    assert state.route.dialect is not None
    return state.route.dialect.name in INJECTIONS and not signs_request(state.headers)


def _leaves(state: FlowState) -> Leaves | None:
    if (continuations := state.bridge.continuations) is None:
        return None
    return lambda loop: inject_tools.remembered(state, continuations, loop)


async def _begin_with_tools(
    flow: http.HTTPFlow, state: FlowState, body: JSONObject, reading: RequestReading, speaker: Speaker
) -> None:
    body = await inject_tools.resume_and_inject(flow, state, body, reading, speaker)
    if (waiting := _begin(flow, state, body, reading)) is not None:
        await waiting


def _begin(
    flow: http.HTTPFlow, state: FlowState, body: JSONObject | None, reading: RequestReading
) -> Awaitable[None] | None:
    assert state.exchange is not None
    if not reading.wants_usage and body is not None:
        _ask_for_usage(flow, state, body)
    state.exchange.start()
    if not _is_let_through(flow, state, state.exchange):
        return None
    if state.bridge.settings.recording.on_failure == "closed":
        return _unless_recordable(flow, state)
    return None


def _is_let_through(flow: http.HTTPFlow, state: FlowState, exchange: Exchange) -> bool:
    breaker = open_breaker(state, exchange)
    if breaker is not None:
        _refuse(flow, state, 503, CIRCUIT_OPEN, breaker.retry_after)
    return breaker is None


def open_breaker(state: FlowState, exchange: Exchange) -> Breaker | None:
    """Ask the circuit breaker, if the provider has one; returns it where it refuses, and the exchange has ended."""
    route, bridge = state.route, state.bridge
    breaker = bridge.breakers.breaker(route.provider, route.template, exchange.request.model)
    if breaker is None:
        return None
    ticket = breaker.admit()
    if ticket is not None:
        exchange.when_ended = ticket.settle
        return None
    bridge.emit(BreakerRejected(route.provider.name, route.template, exchange.request.model))
    exchange.end("circuit_breaker_open", CIRCUIT_OPEN)
    return breaker


def _refuse(flow: http.HTTPFlow, state: FlowState, status: int, message: str, retry_after: int | None = None) -> None:
    state.refused = True
    state.usage_filter = state.unasked_body = None  # nobody is asked, so nobody can refuse what we added
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    flow.response = error_response(state.route.errors, status, message, headers)


async def _unless_recordable(flow: http.HTTPFlow, state: FlowState) -> None:
    assert state.exchange is not None
    if not await state.bridge.recorder.committed():
        _refuse(flow, state, 503, "this request cannot be recorded now, so it is not passed on")
        state.exchange.end("recording_unavailable", "the database cannot be written to")


def _ask_for_usage(flow: http.HTTPFlow, state: FlowState, body: JSONObject) -> None:
    """Ask a chat stream for its usage, where the configuration wants it and the provider is known to take it."""
    route, bridge, request = state.route, state.bridge, flow.request
    if (
        route.dialect is not CHAT_COMPLETIONS
        or not bridge.settings.recording.ask_chat_usage
        or signs_request(state.headers)
        or route.provider.name in bridge.refuses_usage
        or not route.type.may_ask_chat_usage(route.query)
        or "content-encoding" in request.headers
        or (asking := ask_for_usage(body)) is None
    ):
        return
    state.unasked_body = request.raw_content
    state.usage_filter = UsageChunkFilter(bridge.settings.limits.sse_event)
    request.headers["accept-encoding"] = "identity"  # a chunk has to be taken out of the answer
    set_body(request, asking)
    if state.exchange is not None and state.exchange.loop is not None:
        state.exchange.loop.asks(JSONObject(asking))
