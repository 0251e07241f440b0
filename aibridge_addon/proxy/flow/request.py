"""Read the body of a bridged request and start its interception."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable
from dataclasses import replace
from functools import partial

from mitmproxy import http

from aibridge_addon.credentials.client import client_credential, mask, signs_request
from aibridge_addon.dialects import CHAT_COMPLETIONS
from aibridge_addon.dialects.base import UNREAD, RequestReading
from aibridge_addon.dialects.chat_completions.usage import UsageChunkFilter, ask_for_usage
from aibridge_addon.interception import clients
from aibridge_addon.interception.clients import Speaker
from aibridge_addon.interception.exchange import Exchange, Origin
from aibridge_addon.proxy.flow import inject_tools
from aibridge_addon.proxy.flow.admission import admit
from aibridge_addon.proxy.flow.state import Bridged, Dispatch, Head, Refusal, UsageAsk, refuse, set_body
from aibridge_addon.records import utc_now
from aibridge_addon.wire.codings import CodingError, decode_all
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable

logger = logging.getLogger(__name__)

MAX_AGENT_LENGTH = 512
"""Characters. A longer User-Agent is cut, because clients choose it freely."""

NOT_JSON = Refusal(400, "the request body is not JSON")


def read_request(flow: http.HTTPFlow, state: Bridged) -> Awaitable[None] | None:
    """Start the interception. Sets `flow.response` if the request is refused."""
    head, dialect = state.head, state.head.route.dialect
    assert dialect is not None
    body: JSONObject | None = None
    reading = UNREAD
    try:
        coding = head.headers.get(b"content-encoding", b"").decode("latin-1")
        limit = head.bridge.settings.limits.decoded_body
        body = JSONObject(decode_all(flow.request.raw_content or b"", coding or None, limit))
        reading = dialect.read(body)
    except NotJSON:
        refuse(flow, state, NOT_JSON)
        return None
    except (CodingError, Unreadable):
        pass
    if head.route.model:
        reading = replace(reading, model=head.route.model)
    elif head.dispatch.translation is not None:
        reading = replace(reading, model=head.dispatch.translation.choose(reading.model))
    client = clients.program(head.headers)
    has_tools = body is not None and dialect.tools_member in body
    speaker = clients.speaker(client, head.headers, has_tools=has_tools)
    exchange = state.exchange = exchange_for(head, reading, client, speaker)
    if body is not None and head.bridge.continuations is not None and _takes_tools(head):
        return _begin_with_tools(flow, state, exchange, body, speaker)
    return _begin(flow, state, exchange, body)


def exchange_for(head: Head, reading: RequestReading, client: clients.Program, speaker: Speaker) -> Exchange:
    """Create the interception for a request of this flow."""
    for_itself = reading.side_call or speaker is not Speaker.PERSON
    central = _central_hint(head.dispatch)
    credential = client_credential(head.headers, head.route.type.credential_headers)
    agent = head.headers.get(b"user-agent")
    id = str(uuid.uuid4())
    return Exchange(
        id,
        head.route,
        reading,
        Origin(
            actor=head.actor,
            client=client.name,
            client_session_id=clients.session_id(client, head.headers, reading.metadata_user_id),
            user_agent=agent.decode("utf-8", "replace")[:MAX_AGENT_LENGTH] if agent is not None else None,
            credential_kind="byok" if central is None else "centralized",
            credential_hint=mask(credential or "") if central is None else central,
            prompt=None if for_itself else reading.prompt,
            credential=head.credential,
        ),
        emit=head.bridge.emit,
        limits=head.bridge.settings.limits,
        now=utc_now,
        attempts=head.dispatch.attempts,
        on_partial=partial(_log_partial, id),
    )


def _log_partial(id: str, reason: str, error: Exception | None) -> None:
    level = logging.ERROR if error is not None else logging.WARNING
    message = "an answer cannot be read in full, its record is partial: %s (interception=%s)"
    logger.log(level, message, reason, id, exc_info=error)


def _central_hint(dispatch: Dispatch) -> str | None:
    """Return the hint of the central credential. None: the client's own is used."""
    if dispatch.translation is not None:
        return mask(dispatch.translation.signer.key_id)
    if dispatch.attempts.pool is None:
        return None
    return dispatch.attempts.key.hint if dispatch.attempts.key is not None else ""


def _takes_tools(head: Head) -> bool:
    assert head.route.dialect is not None
    return head.route.dialect.injection is not None and not signs_request(head.headers)


async def _begin_with_tools(
    flow: http.HTTPFlow, state: Bridged, exchange: Exchange, body: JSONObject, speaker: Speaker
) -> None:
    body = await inject_tools.resume_and_inject(flow, state, exchange, body, speaker)
    if (waiting := _begin(flow, state, exchange, body)) is not None:
        await waiting


def _begin(flow: http.HTTPFlow, state: Bridged, exchange: Exchange, body: JSONObject | None) -> Awaitable[None] | None:
    if not exchange.request.wants_usage and body is not None:
        _ask_for_usage(flow, state, body)
    exchange.start()
    return admit(state.head.bridge, exchange, partial(refuse, flow, state))


def _ask_for_usage(flow: http.HTTPFlow, state: Bridged, body: JSONObject) -> None:
    """Add `include_usage` to a chat stream, if it is configured and the provider accepts the option."""
    route, bridge, request = state.head.route, state.head.bridge, flow.request
    if (
        route.dialect is not CHAT_COMPLETIONS
        or not bridge.settings.recording.ask_chat_usage
        or signs_request(state.head.headers)
        or route.provider.name in bridge.refuses_usage
        or not route.type.may_ask_chat_usage(route.query)
        or "content-encoding" in request.headers
        or (asking := ask_for_usage(body)) is None
    ):
        return
    state.usage = UsageAsk(request.raw_content, UsageChunkFilter(bridge.settings.limits.sse_event))
    request.headers["accept-encoding"] = "identity"  # a chunk will be removed from the answer
    set_body(request, asking)
    if state.tools is not None:
        state.tools.exchange.loop.replace_request(JSONObject(asking))
