"""Read the body of a bridged request and start its interception."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from mitmproxy import http

from aibridge_addon.credentials.client import client_credential, mask, signs_request
from aibridge_addon.dialects import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES
from aibridge_addon.dialects.base import NOTHING, UNREAD, Dialect, RequestReading
from aibridge_addon.dialects.chat_completions.usage import UsageChunkFilter, ask_for_usage
from aibridge_addon.dialects.context import OUR_TOOLS
from aibridge_addon.ids import RANDOM_BITS, ordered_id
from aibridge_addon.interception import clients
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.billing import billing
from aibridge_addon.interception.buffers import Share
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.once import pending_record, result_key
from aibridge_addon.interception.origin import Origin
from aibridge_addon.interception.routing import MAX_HOST
from aibridge_addon.interception.sale import requested_in
from aibridge_addon.proxy.connection.scope import is_ip_address
from aibridge_addon.proxy.flow import inject_tools
from aibridge_addon.proxy.flow.admission import admit
from aibridge_addon.proxy.flow.plan_limits import central_hint, limits_said
from aibridge_addon.proxy.flow.state import Bridged, Head, Refusal, UsageAsk, is_replay, refuse, set_body
from aibridge_addon.proxy.flow.traces import at, continue_trace
from aibridge_addon.records import MAX_MODEL, Billing, Emit, LeftUnread, RequestClass, utc_now
from aibridge_addon.wire.codings import CodingError, OutputLimitExceeded, decode_all
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable
from aibridge_addon.wire.json_structure import has_more_values
from aibridge_addon.wire.multipart import form_fields

logger = logging.getLogger(__name__)

MAX_AGENT_LENGTH = 512
"""Characters. A longer User-Agent is cut, because clients choose it freely."""

NOT_JSON = Refusal(400, "the request body is not JSON")
TOO_MANY_VALUES = "limits.json_values"


def read_request(flow: http.HTTPFlow, state: Bridged) -> Awaitable[None] | None:
    """Start the interception. Sets `flow.response` if the request is refused.

    A large or coded body is read on a worker thread.
    """
    if len(flow.request.raw_content or b"") > inject_tools.LARGE or state.head.headers.get(b"content-encoding"):
        return _read_later(flow, state)
    return _start(flow, state, read_body(flow.request.raw_content or b"", state.head))


async def _read_later(flow: http.HTTPFlow, state: Bridged) -> None:
    read = await asyncio.to_thread(read_body, flow.request.raw_content or b"", state.head)
    if (waiting := _start(flow, state, read)) is not None:
        await waiting


@dataclass(frozen=True, slots=True)
class Read:
    reading: RequestReading = UNREAD
    body: JSONObject | None = None
    refusal: Refusal | None = None
    unread: str = ""
    """The limit because of which the body is not read."""


def read_body(data: bytes, head: Head) -> Read:
    """Read a request's body. May run on any thread."""
    dialect, limits = head.route.dialect, head.bridge.settings.limits
    assert dialect is not None
    try:
        coding = head.headers.get(b"content-encoding", b"").decode("latin-1")
        content = decode_all(data, coding or None, limits.request_body)
        content_type = head.headers.get(b"content-type", b"").decode("latin-1")
        if dialect.takes_forms and (fields := form_fields(content_type, content)) is not None:
            return Read(dialect.read_form(fields))
        if has_more_values(content, limits.json_values):
            return _too_many_values(head)
        body = JSONObject(content)
        return Read(dialect.read(body), body)
    except NotJSON:
        return Read(refusal=None if dialect.takes_forms else NOT_JSON)
    except OutputLimitExceeded:
        return Read(refusal=Refusal(413, f"the decoded request body is larger than {limits.request_body} bytes"))
    except (CodingError, Unreadable):
        return Read()


def _too_many_values(head: Head) -> Read:
    """The provider may be able to read the request. To translate it for Bedrock, it would have to be decoded."""
    if head.dispatch.translation is None:
        return Read(unread=TOO_MANY_VALUES)
    limit = head.bridge.settings.limits.json_values
    return Read(refusal=Refusal(413, f"the request body has more than {limit} JSON values"))


def _start(flow: http.HTTPFlow, state: Bridged, read: Read) -> Awaitable[None] | None:
    """Start the interception of a request that was read. Sets `flow.response` if it is refused."""
    if read.refusal is not None:
        refuse(flow, state, read.refusal)
        return None
    head, dialect, body, reading = state.head, state.head.route.dialect, read.body, read.reading
    assert dialect is not None
    if head.route.model:
        reading = replace(reading, model=head.route.model)
    elif head.dispatch.translation is not None:
        reading = replace(reading, model=head.dispatch.translation.choose(reading.model))
    sender = clients.sender(head.headers, reading, has_tools=body is not None and dialect.has_tools(body))
    head.dispatch.attempts.model = reading.model[:MAX_MODEL]
    exchange = state.exchange = exchange_for(head, reading, sender, upstream_host(flow, head), share=state.share)
    if read.unread:
        exchange.note(unread=read.unread)
        head.bridge.emit(LeftUnread(read.unread))
    continue_trace(head, exchange, at(flow.request.timestamp_start), flow.request.path)
    if dialect is RESPONSES:
        exchange.when_pending = partial(remember, head, exchange)
    takes_tools = (
        body is not None and head.bridge.continuations is not None and takes_tools_of(head) and not is_replay(flow)
    )
    if body is not None and not is_replay(flow):
        inject_tools.note_signature(head, exchange, body, sender.request_class)
    if body is not None and (takes_tools or exchange.needs_history or body.size > inject_tools.LARGE):
        return _begin_later(flow, state, exchange, body, sender.request_class if takes_tools else None)
    if body is not None:
        _note_context(exchange, dialect, body)
    return _begin(flow, state, exchange, body)


def upstream_host(flow: http.HTTPFlow, head: Head) -> str:
    """Return the host that a request goes to."""
    request = flow.request
    if head.dispatch.translation is not None:
        return head.dispatch.translation.settings.endpoint.host
    if head.route.base is not None:
        return head.route.base.host
    # In a transparent mode the request has an address. The name is found as for the route.
    name = request.host if not is_ip_address(request.host) else flow.client_conn.sni or request.pretty_host
    return name.lower().rstrip(".")[:MAX_HOST]


def exchange_for(
    head: Head,
    reading: RequestReading,
    sender: clients.Sender,
    host: str,
    *,
    emit: Emit | None = None,
    share: Share | None = None,
    attempts: Attempts | None = None,
) -> Exchange:
    """Create the interception for a request of this flow, which goes to `host`.

    `emit` takes its records. None: the bridge does. `share` counts the bytes of its answers. `attempts` are its own;
    None: those of the flow.
    """
    if len(reading.model) > MAX_MODEL:
        reading = replace(reading, model=reading.model[:MAX_MODEL])
    if requested := requested_in(head.headers):
        reading = replace(reading, requested={**reading.requested, **requested})
    central = central_hint(head.dispatch)
    credential = client_credential(head.headers, head.route.type.credential_headers)
    agent = head.headers.get(b"user-agent")
    id = ordered_id(utc_now(), secrets.randbits(RANDOM_BITS))
    return Exchange(
        id,
        head.route,
        reading,
        Origin(
            actor=head.actor,
            client=sender.client,
            client_session_id=sender.session_id,
            user_agent=agent.decode("utf-8", "replace")[:MAX_AGENT_LENGTH] if agent is not None else None,
            credential_kind="byok" if central is None else "centralized",
            credential_hint=mask(credential or "") if central is None else central,
            prompt=reading.prompt if sender.request_class == "prompt" else None,
            upstream_host=host,
            agent_id=sender.agent_id,
            prompt_id=sender.prompt_id,
            project=sender.project,
            request_class=sender.request_class,
            billing=_billing(head, credential),
            details=sender.details,
            credential=head.credential,
        ),
        emit=emit or head.bridge.emit,
        limits=head.bridge.settings.limits,
        now=utc_now,
        attempts=attempts or head.dispatch.attempts,
        on_partial=partial(log_partial, id),
        on_limits=partial(limits_said, head),
        texts=head.bridge.settings.recording.answers,
        share=share,
    )


def begin_unread(flow: http.HTTPFlow, state: Bridged) -> Exchange:
    """Start the interception of a request that could not be read, so that it has a row."""
    exchange = exchange_for(
        state.head, UNREAD, clients.sender(state.head.headers, UNREAD, has_tools=False), upstream_host(flow, state.head)
    )
    exchange.start()
    return exchange


def remember(head: Head, exchange: Exchange, response_id: str) -> None:
    """Keep an interception for the request that will bring the end of its response."""
    head.bridge.emit(pending_record(exchange, background_key(head, response_id)))


def background_key(head: Head, response_id: str) -> str:
    """Return the key under which an interception is kept for the end of its background response."""
    return result_key("background", head.route, f"{head.actor.id} {head.credential}", response_id)


def log_partial(id: str, reason: str, error: Exception | None) -> None:
    """Log why an answer cannot be read in full."""
    level = logging.ERROR if error is not None else logging.WARNING
    message = "an answer cannot be read in full, its record is partial: %s (interception=%s)"
    logger.log(level, message, reason, id, exc_info=error)


def _billing(head: Head, credential: str | None) -> Billing | None:
    if head.dispatch.translation is not None:
        return "api"  # AWS
    if head.dispatch.attempts.pool is None:
        return billing(head.route, credential)
    key = head.dispatch.attempts.key
    return billing(head.route, key.secret.get_secret_value() if key is not None else None)


def takes_tools_of(head: Head) -> bool:
    """Return whether tools may be injected into a request with this head."""
    assert head.route.dialect is not None
    has_servers = head.bridge.continuations is not None
    return has_servers and head.route.dialect.injection is not None and not inject_tools.is_signed(head)


async def _begin_later(
    flow: http.HTTPFlow, state: Bridged, exchange: Exchange, body: JSONObject, request_class: RequestClass | None
) -> None:
    """Begin a request that is large, or whose history is read. `request_class`: None if it takes no tools."""
    history, dialect = None, state.head.route.dialect
    assert dialect is not None
    if exchange.history is not None and (request_class is not None or exchange.needs_history):
        history = await inject_tools.read_history(flow.request, state, exchange, body)
        exchange.trace(body, history)
    if request_class is not None:
        body = await inject_tools.resume_and_inject(flow.request, state, exchange, body, history, request_class)
    schemas = state.tools.schema_bytes if state.tools is not None else {}
    if body.size > inject_tools.LARGE:
        await asyncio.to_thread(_note_context, exchange, dialect, body, schemas)
    else:
        _note_context(exchange, dialect, body, schemas)
    if (waiting := _begin(flow, state, exchange, body)) is not None:
        await waiting


def _note_context(exchange: Exchange, dialect: Dialect, body: JSONObject, schemas: Mapping[str, int] = NOTHING) -> None:
    """Note where the context of a request goes. `schemas`: bytes of the injected tools' definitions, by server."""
    if context := dialect.context_bytes(body, sum(schemas.values())):
        injected = schemas if OUR_TOOLS in context else None
        exchange.note(context_bytes=context, **({"schema_bytes": injected} if injected else {}))


def _begin(flow: http.HTTPFlow, state: Bridged, exchange: Exchange, body: JSONObject | None) -> Awaitable[None] | None:
    if not exchange.request.wants_usage and body is not None and not is_replay(flow):
        _ask_for_usage(flow, state, body, exchange.request.model)
    exchange.start()
    return admit(state.head.bridge, exchange, body or flow.request.raw_content or b"", partial(refuse, flow, state))


def _ask_for_usage(flow: http.HTTPFlow, state: Bridged, body: JSONObject, model: str) -> None:
    """Add `include_usage` to a chat stream, if it is configured and the model accepts the option."""
    route, bridge, request = state.head.route, state.head.bridge, flow.request
    if (
        route.dialect not in (CHAT_COMPLETIONS, COMPLETIONS)
        or not bridge.settings.recording.ask_chat_usage
        or signs_request(state.head.headers)
        or (route.provider.name, model) in bridge.refuses_usage
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
