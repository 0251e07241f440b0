"""From an upstream answer's head to the interception's end."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Awaitable

from mitmproxy import http

from aibridge_addon.dialects.chat_completions.usage import refuses_usage
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.proxy.flow.bedrock import from_bedrock
from aibridge_addon.proxy.flow.state import RETRY_BODY_LIMIT, FlowState, set_body, state_of
from aibridge_addon.records import FirstByte, Overhead, Passthrough
from aibridge_addon.wire.codings import CodingError, decode_all, decoder_for
from aibridge_addon.wire.framing import SERVER_SENT, framing_of
from aibridge_addon.wire.json_object import JSONObject

logger = logging.getLogger(__name__)


def open_answer(flow: http.HTTPFlow) -> None:
    """An answer's head has arrived: from here on it streams, whatever it is."""
    state = state_of(flow)
    assert flow.response is not None
    if state is not None and state.refused:
        return
    _frame_for_http1(flow)
    if state is not None and (exchange := state.exchange) is not None:
        if state.translation is not None and from_bedrock(
            flow.response, state.translation, state.bridge.settings.limits.sse_event
        ):
            _unframe(flow)
        headers, status = flow.response.headers, flow.response.status_code
        content_type = headers.get("content-type", "")
        if exchange.loop is not None and status >= 400 and exchange.turns == 0:
            # Nothing has been called yet: the error is the answer, or the request goes again.
            state.refused_loop, exchange.loop = exchange.loop, None
        if exchange.loop is not None:
            state.unasked_body = None
            exchange.open_answer(status, content_type, headers.get("content-encoding", ""), headers)
            if exchange.turns == 1:
                _measure_first_byte(flow, state, exchange)
            flow.response.stream = exchange.streaming  # a body or an error is read whole
            if exchange.streaming:
                _unframe(flow)
            return
        if state.usage_filter is not None and framing_of(status, content_type, SERVER_SENT) is not None:
            _make_room(flow, state)
        exchange.open_answer(status, content_type, headers.get("content-encoding", ""), headers)
        _measure_first_byte(flow, state, exchange)
        if state.unasked_body is not None and status == 400:
            return  # buffered: if it is about what we added, the client never sees it
        state.unasked_body = None
        if state.usage_filter is not None and not exchange.streaming:
            state.usage_filter = None
    flow.response.stream = True


def _measure_first_byte(flow: http.HTTPFlow, state: FlowState, exchange: Exchange) -> None:
    if flow.response is not None and flow.response.timestamp_start is not None:
        waited = flow.response.timestamp_start - flow.request.timestamp_start
        state.bridge.emit(FirstByte(state.route.provider.name, exchange.request.model, waited))


def _make_room(flow: http.HTTPFlow, state: FlowState) -> None:
    """A chunk will be taken out of this answer: it cannot stay coded, nor keep its length."""
    assert flow.response is not None
    headers = flow.response.headers
    try:
        # Nothing of it is kept, so that there is no limit but the one on each feed.
        state.decoder = decoder_for(headers.get("content-encoding"), sys.maxsize)
    except CodingError:
        state.usage_filter = None
        return
    _unframe(flow)


def _unframe(flow: http.HTTPFlow) -> None:
    """The client is sent other bytes than came: they are not coded, and their number is not known."""
    assert flow.response is not None
    headers = flow.response.headers
    headers.pop("content-encoding", None)
    if "content-length" in headers:
        del headers["content-length"]
        if flow.request.http_version == "HTTP/1.1":
            headers["transfer-encoding"] = "chunked"


def _frame_for_http1(flow: http.HTTPFlow) -> None:
    """HTTP/2 tells where a body ends; HTTP/1.1 has to be told, or a cut looks like the end and costs a connection."""
    request, response = flow.request, flow.response
    assert response is not None
    framed = response.is_http2 or response.is_http3
    bodiless = request.method == "HEAD" or response.status_code in (204, 304)
    if framed and not bodiless and request.http_version == "HTTP/1.1" and "content-length" not in response.headers:
        response.headers["transfer-encoding"] = "chunked"


def another_turn(flow: http.HTTPFlow) -> bool:
    """Decide on a 400 to a request that we added to: if it says so, the request goes again as the client sent it."""
    state = state_of(flow)
    assert state is not None and state.exchange is not None and flow.response is not None
    error = flow.response.raw_content or b""
    try:
        error = decode_all(error, flow.response.headers.get("content-encoding"), RETRY_BODY_LIMIT)
    except CodingError:
        error = b""
    original, state.unasked_body = state.unasked_body, None
    state.usage_filter = None
    if original is not None and refuses_usage(error):
        logger.info("%s takes no stream_options; it is not asked again", state.route.provider.name)
        state.bridge.refuses_usage.add(state.route.provider.name)
        set_body(flow.request, original)
        state.exchange.loop = state.refused_loop
        if state.exchange.loop is not None:
            state.exchange.loop.asks(JSONObject(original))
        else:
            _restore_accept_encoding(flow.request, state)
        state.another_turn = True
        state.exchange.discard_answer()
    else:
        state.exchange.feed(flow.response.raw_content or b"", last=True)
    return state.another_turn


def _restore_accept_encoding(request: http.Request, state: FlowState) -> None:
    accepted = state.headers.get(b"accept-encoding")
    if accepted is None:
        request.headers.pop("accept-encoding", None)
    else:
        request.headers["accept-encoding"] = accepted.decode("utf-8", "surrogateescape")


async def commit(flow: http.HTTPFlow) -> None:
    """The answer's end is held: wait for its rows."""
    state = state_of(flow)
    assert state is not None
    recording = state.bridge.settings.recording
    if recording.durable:
        began = time.perf_counter()
        committed = await state.bridge.recorder.committed()
        state.overhead += time.perf_counter() - began
        state.committed = True
        state.lost = not committed and recording.on_failure == "closed"


def answered(flow: http.HTTPFlow) -> Awaitable[None] | None:
    """The answer is complete; what is returned has to be waited for before the client sees its end."""
    state = state_of(flow)
    if state is None:
        return None
    if not state.refused and (exchange := state.exchange) is not None:
        exchange.answer_ended()
        if not state.committed and state.bridge.settings.recording.durable:
            return _committed(flow, state)
        _measure(state)
    elif not state.refused:
        _count_passthrough(flow)
    state.left()
    return None


async def _committed(flow: http.HTTPFlow, state: FlowState) -> None:
    await commit(flow)
    _measure(state)
    state.left()


def _measure(state: FlowState) -> None:
    state.bridge.emit(Overhead(state.route.provider.name, state.overhead))


def failed(flow: http.HTTPFlow) -> None:
    """The flow has ended without an answer, or in the middle of one."""
    state = state_of(flow)
    if state is None:
        return
    state.left()
    if state.exchange is not None:
        message = flow.error.msg if flow.error is not None else ""
        begun = state.exchange.turns > 0
        if state.cut_by == "client":
            state.exchange.end("client_disconnected", message)
        else:
            state.exchange.end("upstream_disconnected" if begun else "upstream_unreachable", message)
    elif state.route.dialect is None and not state.refused:
        _count_passthrough(flow)


def _count_passthrough(flow: http.HTTPFlow) -> None:
    state = state_of(flow)
    assert state is not None and state.actor is not None
    state.bridge.emit(
        Passthrough(
            provider_name=state.route.provider.name,
            route=state.route.template,
            method=flow.request.method,
            initiator_id=state.actor.id,
        )
    )
