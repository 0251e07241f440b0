"""Handle an upstream answer from its head to the end of the interception."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Coroutine
from typing import Any, assert_never

from mitmproxy import http

from aibridge_addon import records
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.once import Once
from aibridge_addon.proxy.connection.handler import INACTIVE, is_inactive
from aibridge_addon.proxy.flow import refused, results
from aibridge_addon.proxy.flow.bedrock import Translation, from_bedrock
from aibridge_addon.proxy.flow.http1 import frame_answer
from aibridge_addon.proxy.flow.plan_limits import limits_came
from aibridge_addon.proxy.flow.state import (
    RETRY_BODY_LIMIT,
    Bridged,
    Foreign,
    Head,
    Passthrough,
    Refused,
    Rows,
    UsageAsk,
    is_replay,
    state_of,
)
from aibridge_addon.proxy.flow.traces import passthrough_times
from aibridge_addon.records import FirstByte, Overhead
from aibridge_addon.wire.codings import CodingError, decoder_for
from aibridge_addon.wire.framing import SERVER_SENT, Form, form_of, media_type

logger = logging.getLogger(__name__)

UNRESOLVED = (
    "Name or service not known",
    "Temporary failure in name resolution",
    "No address associated with hostname",
    "nodename nor servname provided",
    "getaddrinfo failed",
    "name cannot be resolved",
)
"""Words of the system's resolver, and of the egress guard, about a name without an address."""
BUDGET_HEADER = "X-AI-Bridge-Budget"
"""Header of an answer while a budget is near its limit."""


def open_answer(flow: http.HTTPFlow, passthrough_body: int) -> None:
    """Start reading an answer whose head has arrived, and set whether it is streamed to the client.

    `passthrough_body`: bytes. Shorter answers that are not read are buffered, so that other addons see them.
    """
    assert flow.response is not None
    match state_of(flow):
        case Refused():
            pass
        case Foreign():
            frame_answer(flow)
            flow.response.stream = flow.response.stream or not _is_short(flow.response, passthrough_body)
        case Passthrough() as state:
            state.head.dispatch.settle_ticket(flow.response.status_code)
            limits_came(state.head, flow.response.headers)
            frame_answer(flow)
            flow.response.stream = flow.response.stream or not _is_short(flow.response, passthrough_body)
        case Bridged() as state:
            frame_answer(flow)
            limits_came(state.head, flow.response.headers)
            results.opened(flow, state)
            streams = state.stored is None if state.exchange is None else _open_bridged(flow, state, state.exchange)
            state.buffers = not streams
            if is_replay(flow):
                flow.response.stream = False  # no client waits, and the whole answer is read at its end
                return
            if not callable(flow.response.stream):  # else another addon wants the pieces
                flow.response.stream = streams
        case state:
            assert_never(state)


def _is_short(response: http.Response, limit: int) -> bool:
    """Return whether an answer has a declared length of at most `limit` bytes."""
    declared = response.headers.get("content-length", "")
    return declared.isascii() and declared.isdigit() and int(declared[:20]) <= min(limit, RETRY_BODY_LIMIT)


def _open_bridged(flow: http.HTTPFlow, state: Bridged, exchange: Exchange) -> bool:
    """Start reading a bridged answer. Returns whether it is streamed to the client."""
    if state.head.bridge.budgets is not None:
        _show_budget(flow, state.head.bridge.budgets.accounts.near(exchange.id))
    response, translation = flow.response, state.head.dispatch.translation
    assert response is not None
    headers, status = response.headers, response.status_code
    state.undecided = False
    if translation is not None:
        _open_translated(flow, state, translation, streaming=exchange.request.streaming)
    if state.usage is not None and state.tools is None and status < 400:
        state.usage = _with_room(flow, state.usage)
    opened = exchange if state.tools is None else state.tools.exchange
    opened.open_answer(status, headers.get("content-type", ""), headers.get("content-encoding", ""), headers)
    if state.once is not None and exchange.tap is not None:
        exchange.tap.reader.reading.response_id = state.head.route.result_id
    elif exchange.turns == 1:
        _measure_first_byte(state, exchange)
    if status < 400:
        refused.accepted(state, exchange)
    if state.splicing is not None:
        return _open_spliced(flow, state, exchange, streaming=status < 400 and exchange.request.streaming)
    state.asks_again = refused.may_ask_again(state, status)
    if state.asks_again:
        return False  # buffered: if it is about what was added, the client does not get it
    if state.usage is not None:
        state.usage.original = None
    return not state.undecided


def _show_budget(flow: http.HTTPFlow, near: str | None) -> None:
    """Add a header about the budget that is near its limit. An upstream's own header of this name is removed."""
    assert flow.response is not None
    flow.response.headers.pop(BUDGET_HEADER, None)
    if near is not None:
        over_http1 = not (flow.response.is_http2 or flow.response.is_http3)
        flow.response.headers[BUDGET_HEADER if over_http1 else BUDGET_HEADER.lower()] = near


def _open_spliced(flow: http.HTTPFlow, state: Bridged, exchange: Exchange, *, streaming: bool) -> bool:
    """Prepare the answer of a turn. Returns whether it is streamed to the client at once.

    It is not if its label is not that of a stream: its first bytes then decide. A body or an error is buffered.
    """
    assert flow.response is not None
    if streaming and media_type(flow.response.headers.get("content-type", "")) in exchange.framings:
        _unframe(flow)
        return True
    state.undecided = streaming
    return False


def _open_translated(flow: http.HTTPFlow, state: Bridged, translation: Translation, *, streaming: bool) -> None:
    """Prepare an answer of Bedrock. The first bytes of a stream with an unfitting label decide about its form."""
    response = flow.response
    assert response is not None
    from_bedrock(response, translation, state.head.bridge.settings.limits.sse_event, streaming=streaming)
    is_stream = media_type(response.headers.get("content-type", "")) in SERVER_SENT
    if response.status_code >= 400 or is_stream:
        _unframe(flow)
    state.undecided = streaming and response.status_code < 400 and not is_stream


def is_streamed(flow: http.HTTPFlow, state: Bridged, beginning: bytes) -> bool:
    """Decide by its first bytes whether an undecided answer is streamed to the client, and prepare its head."""
    assert flow.response is not None
    try:
        decoder = decoder_for(flow.response.headers.get("content-encoding"), sys.maxsize)
        form = form_of(b"".join(decoder.feed(beginning)) if decoder is not None else beginning)
    except CodingError:
        form = Form.UNKNOWN
    state.undecided = form is Form.OPEN
    framing = form.framing
    is_stream = framing is not None and state.exchange is not None and framing in state.exchange.framings.values()
    if is_stream and framing is not None:
        stream_answer(flow, framing.content_type)
    # With tools, a body is buffered up to its end, because it may show an injected call.
    return is_stream or (state.tools is None and not state.undecided)


def stream_answer(flow: http.HTTPFlow, content_type: str) -> None:
    """Prepare the head of an answer that the client gets as a stream of events, whatever the upstream sent."""
    assert flow.response is not None
    _unframe(flow)
    flow.response.headers["content-type"] = content_type


def _measure_first_byte(state: Bridged, exchange: Exchange) -> None:
    exchange.first_byte_came()
    if (waited := exchange.time_to_first_byte_ms) is not None:
        state.head.bridge.emit(FirstByte(state.head.route.provider.name, exchange.request.model, waited / 1000))


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
    """Handle an error to a request to which the bridge has added something.

    If the error may be about that, `flow.response` is set to None and the request is sent again without it.
    """
    if refused.ask_again(flow, state, exchange):
        return
    assert flow.response is not None
    exchange.feed(flow.response.raw_content or b"", last=True)
    await commit(flow, state)


async def commit(flow: http.HTTPFlow, state: Bridged) -> None:
    """Wait until the rows of an answer are committed. Its end is sent after that."""
    bridge = state.head.bridge
    recording = bridge.settings.recording
    if state.once is not None:
        await state.once.settle()
        if not state.once.emitted:
            return
    if recording.durable:
        began = time.perf_counter()
        committed = await bridge.committed()
        state.overhead += time.perf_counter() - began
        state.rows = Rows.LOST if not committed and recording.on_failure == "closed" else Rows.AWAITED


def answered(flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
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
            if is_replay(flow) and flow.response is not None:
                exchange.feed(flow.response.raw_content or b"", last=True)
            exchange.answer_ended()
            if state.once is not None:
                return _settled(flow, state, state.once)
            if state.rows is Rows.PENDING and state.head.bridge.settings.recording.durable:
                return _committed(flow, state)
            _measure(state)
        case state:
            assert_never(state)
    state.left()
    return None


def answered_unawaited(flow: http.HTTPFlow) -> None:
    """End a flow whose answer is complete, if its end cannot wait for the rows any more."""
    waiting, state = answered(flow), state_of(flow)
    if waiting is None or not isinstance(state, Bridged):
        return
    state.settling = asyncio.ensure_future(waiting)
    if state.rows is Rows.PENDING and state.head.bridge.settings.recording.on_failure == "closed":
        state.rows = Rows.LOST


async def _settled(flow: http.HTTPFlow, state: Bridged, once: Once) -> None:
    """End the fetch of a result. It is counted as a passthrough, unless it is an interception of its own."""
    if state.rows is Rows.PENDING:
        await commit(flow, state)
    if state.head.route.result_of != "batch" or not once.emitted:
        _count_passthrough(flow, state.head)
    state.left()


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
            if flow.client_conn.connected:
                state.head.dispatch.settle_ticket(None, _unreached(flow))
            _count_passthrough(flow, state.head)
        case Bridged() as state:
            if state.exchange is not None:
                message = flow.error.msg if flow.error is not None else ""
                if state.cut_by == "client" and is_inactive(flow.client_conn):
                    state.cut_by, message = "inactivity", INACTIVE
                state.exchange.end(_end_of(flow, state, state.exchange), message)
                if state.once is not None:
                    state.settling = asyncio.ensure_future(_settled(flow, state, state.once))
                    return
        case state:
            assert_never(state)
    state.left()


def _end_of(flow: http.HTTPFlow, state: Bridged, exchange: Exchange) -> str:
    """Return the error type of an interception that has ended early."""
    if state.cut_by == "inactivity":
        return "inactivity"
    if state.cut_by == "client":
        return "client_disconnected"
    if exchange.turns > 0:
        return "upstream_disconnected"
    return _unreached(flow)


def _unreached(flow: http.HTTPFlow) -> str:
    """Return the error type of a request whose upstream could not be reached."""
    message = flow.error.msg if flow.error is not None else ""
    return "upstream_unresolvable" if any(words in message for words in UNRESOLVED) else "upstream_unreachable"


def _count_passthrough(flow: http.HTTPFlow, head: Head) -> None:
    head.bridge.emit(
        records.Passthrough(
            provider_name=head.route.provider.name,
            route=head.route.template,
            method=flow.request.method,
            initiator_id=head.actor.id,
            billable=head.route.billable,
            times=passthrough_times(flow, head) if head.bridge.traces is not None else None,
        )
    )
