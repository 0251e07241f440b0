"""Handle an upstream answer from its head to the end of the interception."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Awaitable
from typing import assert_never

from mitmproxy import http

from aibridge_addon import records
from aibridge_addon.dialects.chat_completions.usage import refuses_usage
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.proxy.flow.bedrock import from_bedrock
from aibridge_addon.proxy.flow.http1 import frame_answer
from aibridge_addon.proxy.flow.state import (
    RETRY_BODY_LIMIT,
    Bridged,
    Foreign,
    Head,
    Passthrough,
    Refused,
    Rows,
    UsageAsk,
    set_body,
    state_of,
)
from aibridge_addon.records import FirstByte, Headers, Overhead
from aibridge_addon.wire.codings import CodingError, decode_all, decoder_for
from aibridge_addon.wire.framing import SERVER_SENT, framing_of
from aibridge_addon.wire.json_object import JSONObject

logger = logging.getLogger(__name__)


def open_answer(flow: http.HTTPFlow) -> None:
    """Start reading an answer whose head has arrived, and set whether it is streamed to the client."""
    assert flow.response is not None
    match state_of(flow):
        case Refused():
            pass
        case Foreign() | Passthrough():
            frame_answer(flow)
            flow.response.stream = True
        case Bridged() as state:
            frame_answer(flow)
            flow.response.stream = state.exchange is None or _open_bridged(flow, state, state.exchange)
        case state:
            assert_never(state)


def _open_bridged(flow: http.HTTPFlow, state: Bridged, exchange: Exchange) -> bool:
    """Start reading a bridged answer. Returns whether it is streamed to the client."""
    response, translation = flow.response, state.head.dispatch.translation
    assert response is not None
    if translation is not None and from_bedrock(response, translation, state.head.bridge.settings.limits.sse_event):
        _unframe(flow)
    headers, status = response.headers, response.status_code
    content_type = headers.get("content-type", "")
    if state.usage is not None and state.tools is None and framing_of(status, content_type, SERVER_SENT) is not None:
        state.usage = _with_room(flow, state.usage)
    opened = exchange if state.tools is None else state.tools.exchange
    opened.open_answer(status, content_type, headers.get("content-encoding", ""), headers)
    if exchange.turns == 1:
        _measure_first_byte(flow, state, exchange)
    if state.splicing is not None:
        if state.usage is not None:
            state.usage.original = None
        if exchange.streaming:
            _unframe(flow)
        return exchange.streaming  # a JSON body or an error is buffered
    if state.usage is not None and state.usage.original is not None:
        if status == 400:
            return False  # buffered: if it is about the added option, the client does not get it
        state.usage.original = None
        if not exchange.streaming:
            state.usage = None
    return True


def _measure_first_byte(flow: http.HTTPFlow, state: Bridged, exchange: Exchange) -> None:
    if flow.response is not None and flow.response.timestamp_start is not None:
        waited = flow.response.timestamp_start - flow.request.timestamp_start
        exchange.time_to_first_byte_ms = round(waited * 1000)
        state.head.bridge.emit(FirstByte(state.head.route.provider.name, exchange.request.model, waited))


def _with_room(flow: http.HTTPFlow, usage: UsageAsk) -> UsageAsk | None:
    """Prepare an answer from which a chunk will be removed: decode it and remove its length.

    Returns None if its coding is not known, so that it has to stay as it is.
    """
    assert flow.response is not None
    try:
        # The decoded bytes are not kept, so only the limit of each feed applies.
        usage.decoder = decoder_for(flow.response.headers.get("content-encoding"), sys.maxsize)
    except CodingError:
        return None
    _unframe(flow)
    return usage


def _unframe(flow: http.HTTPFlow) -> None:
    """Remove the headers that are wrong for a changed body: it is not coded, and its length is not known."""
    assert flow.response is not None
    headers = flow.response.headers
    headers.pop("content-encoding", None)
    if "content-length" in headers:
        del headers["content-length"]
        if flow.request.http_version == "HTTP/1.1":
            headers["transfer-encoding"] = "chunked"


async def first_turn_refused(flow: http.HTTPFlow, state: Bridged, exchange: Exchange) -> None:
    """Handle a 400 to a request with an added option.

    If the error is about that option, `flow.response` is set to None and the client's own request is sent again.
    """
    usage, state.usage = state.usage, None
    assert flow.response is not None
    body = flow.response.raw_content or b""
    try:
        error = decode_all(body, flow.response.headers.get("content-encoding"), RETRY_BODY_LIMIT)
    except CodingError:
        error = b""
    if usage is None or usage.original is None or not refuses_usage(error):
        exchange.feed(body, last=True)
        await commit(flow, state)
        return
    provider_name = state.head.route.provider.name
    logger.info("%s refuses stream_options; the option is not added any more", provider_name)
    state.head.bridge.refuses_usage.add(provider_name)
    set_body(flow.request, usage.original)
    if state.tools is not None:
        state.tools.exchange.loop.replace_request(JSONObject(usage.original))
        state.tools.exchange.discard_answer()
    else:
        _restore_accept_encoding(flow.request, state.head.headers)
        exchange.discard_answer()
    flow.response = None


def _restore_accept_encoding(request: http.Request, headers: Headers) -> None:
    accepted = headers.get(b"accept-encoding")
    if accepted is None:
        request.headers.pop("accept-encoding", None)
    else:
        request.headers["accept-encoding"] = accepted.decode("utf-8", "surrogateescape")


async def commit(flow: http.HTTPFlow, state: Bridged) -> None:
    """Wait until the rows of an answer are committed. Its end is sent after that."""
    bridge = state.head.bridge
    recording = bridge.settings.recording
    if recording.durable:
        began = time.perf_counter()
        committed = await bridge.committed()
        state.overhead += time.perf_counter() - began
        state.rows = Rows.LOST if not committed and recording.on_failure == "closed" else Rows.AWAITED


def answered(flow: http.HTTPFlow) -> Awaitable[None] | None:
    """End a flow whose answer is complete. The client gets the answer's end after the returned awaitable."""
    match state_of(flow):
        case Foreign():
            return None
        case Refused() as state:
            pass
        case Passthrough() as state:
            _count_passthrough(flow, state.head)
        case Bridged(exchange=None) as state:
            _count_passthrough(flow, state.head)
        case Bridged(exchange=exchange) as state:
            assert exchange is not None
            exchange.answer_ended()
            if state.rows is Rows.PENDING and state.head.bridge.settings.recording.durable:
                return _committed(flow, state)
            _measure(state)
        case state:
            assert_never(state)
    state.left()
    return None


async def _committed(flow: http.HTTPFlow, state: Bridged) -> None:
    await commit(flow, state)
    _measure(state)
    state.left()


def _measure(state: Bridged) -> None:
    state.head.bridge.emit(Overhead(state.head.route.provider.name, state.overhead))


def failed(flow: http.HTTPFlow) -> None:
    """End a flow without an answer, or with one that broke off."""
    match state_of(flow):
        case Foreign():
            return
        case Refused() as state:
            pass
        case Passthrough() as state:
            _count_passthrough(flow, state.head)
        case Bridged() as state:
            if state.exchange is not None:
                message = flow.error.msg if flow.error is not None else ""
                state.exchange.end(_end_of(state, state.exchange), message)
        case state:
            assert_never(state)
    state.left()


def _end_of(state: Bridged, exchange: Exchange) -> str:
    """Return the error type of an interception that the client or the upstream has ended early."""
    if state.cut_by == "client":
        return "client_disconnected"
    return "upstream_disconnected" if exchange.turns > 0 else "upstream_unreachable"


def _count_passthrough(flow: http.HTTPFlow, head: Head) -> None:
    head.bridge.emit(
        records.Passthrough(
            provider_name=head.route.provider.name,
            route=head.route.template,
            method=flow.request.method,
            initiator_id=head.actor.id,
        )
    )
