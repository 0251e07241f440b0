"""Decide by its size whether a body is buffered, streamed or refused.

    request ─┬─ bridged      buffered, up to `limits.request_body`
             └─ all others   buffered up to `limits.passthrough_body`, then streamed; or beyond `limits.buffered`
    answer  ─── buffered only where its end decides what the client gets, up to its limit

Other addons see a buffered body in their `request` hook, before it goes upstream. mitmproxy's `body_size_limit` holds
for all bodies whose size is known before they are streamed. Its `stream_large_bodies` lowers the size from which bodies
of requests that are not bridged are streamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from mitmproxy import http
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http import _hooks as http_hooks
from mitmproxy.proxy.utils import ReceiveBuffer
from mitmproxy.utils import human

from aibridge_addon.proxy.flow.http1 import content_length
from aibridge_addon.proxy.flow.state import Bridged, FlowState, Foreign, Refusal, set_body
from aibridge_addon.proxy.stream.buffered import BufferedAnswer
from aibridge_addon.proxy.stream.client_side import Transform, transformed
from aibridge_addon.proxy.stream.counted_bodies import NO_MEMORY, CountedBodies
from aibridge_addon.proxy.stream.early_end import EarlyEnd
from aibridge_addon.proxy.stream.request import sent_upstream


class SizedStream(Protocol):
    """The part of `BridgeHttpStream` that body sizes use."""

    flow: http.HTTPFlow
    context: context.Context
    stream_id: int
    client_state: Callable[[Any], layer.CommandGenerator[None]]
    early_end: EarlyEnd
    request_body_buf: ReceiveBuffer
    response_body_buf: ReceiveBuffer
    buffered: BufferedAnswer
    buffers: CountedBodies

    @property
    def state(self) -> FlowState: ...
    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]: ...
    def start_request_stream(self) -> layer.CommandGenerator[None]: ...
    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]: ...

    def ignore_events(self) -> None: ...


class BodySize:
    def __init__(self, stream: SizedStream, passthrough_body: int) -> None:
        """`passthrough_body` is the configuration's limit of that name, in bytes."""
        self._stream = stream
        self._passthrough_body = passthrough_body
        self._transform: Transform | None = None

    def check_request(self, is_classified: bool) -> layer.CommandGenerator[bool]:
        """Check the part of a request that has arrived. Returns whether the stream has ended.

        Before the head is classified, nothing is known about the limits. It is checked again after that.
        """
        stream, request = self._stream, self._stream.flow.request
        if not is_classified:
            return False
        if stream.flow.response is not None:
            stream.request_body_buf.clear()  # it is answered, so the rest is only read to its end
            return False
        size = max(len(stream.request_body_buf), content_length(request))
        limit, state = self._limit(), stream.state
        if isinstance(state, Bridged):
            limit = min(limit, state.head.bridge.settings.limits.request_body)
        if size > limit:
            yield from self._refuse_request(f"the request body is larger than {limit} bytes")
            return True
        if isinstance(state, Bridged) and not stream.buffers.take_request(state, len(stream.request_body_buf)):
            yield from stream.early_end.reject(NO_MEMORY)
            return True
        if isinstance(state, Bridged):
            return False
        streamed_from = _size(stream.context.options.stream_large_bodies)
        is_too_large = size > min(self._passthrough_body, streamed_from)
        if is_too_large or not stream.buffers.take_request(state, len(stream.request_body_buf)):
            stream.buffers.give_request_back(state)
            yield from self._stream_request()
        return False

    def _limit(self) -> float:
        return _size(self._stream.context.options.body_size_limit)

    def _refuse_request(self, message: str) -> layer.CommandGenerator[None]:
        stream = self._stream
        yield from stream.early_end.run_error_hook(message)
        if not isinstance(stream.state, Foreign):
            yield from stream.early_end.refuse(Refusal(413, message))
            return
        code = http_events.ErrorCode.REQUEST_TOO_LARGE
        stream.flow.live = False
        stream.ignore_events()
        yield SendHttp(http_events.ResponseProtocolError(stream.stream_id, message, code), stream.context.client)

    def _stream_request(self) -> layer.CommandGenerator[None]:
        """Stream a request whose body was buffered so far."""
        stream = self._stream
        body = bytes(stream.request_body_buf)
        stream.request_body_buf.clear()
        stream.flow.request.stream = stream.flow.request.stream or True
        yield from stream.start_request_stream()
        if body:
            yield from stream.handle_event(http_events.RequestData(stream.stream_id, body))

    def start_stream(self, start: layer.CommandGenerator[None]) -> layer.CommandGenerator[None]:
        """Stream a request by mitmproxy's commands `start`, unless it is buffered or refused.

        A bridged request has to be read first, and an answered one goes nowhere. So these are buffered, whatever
        another addon wants. What it does with the pieces of a body is then done at its end.
        """
        stream, request = self._stream, self._stream.flow.request
        if isinstance(stream.state, Bridged) or stream.flow.response is not None:
            if callable(request.stream):
                self._transform = request.stream
            request.stream = False
            stream.client_state = stream.state_consume_request_body
        elif content_length(request) > (limit := self._limit()):
            yield from self._refuse_request(f"the request body is larger than {limit} bytes")
        else:
            yield from sent_upstream(start, stream.flow)

    def end_buffered(self, end: layer.CommandGenerator[None]) -> layer.CommandGenerator[None]:
        """Send a buffered request upstream by mitmproxy's commands `end`."""
        transform, self._transform = self._transform, None
        if transform is not None and self._stream.flow.response is None:
            buffered = self._stream.request_body_buf
            body = transformed(transform, bytes(buffered)) + transformed(transform, b"")
            buffered.clear()
            buffered += body
            set_body(self._stream.flow.request, body)
        yield from sent_upstream(end, self._stream.flow)

    def check_answer(self) -> layer.CommandGenerator[bool]:
        """Check the part of an answer that has arrived. Returns whether the stream has ended."""
        stream = self._stream
        if stream.response_body_buf:
            yield from stream.buffered.grew()
            return False
        assert stream.flow.response is not None
        limit = self._limit()
        if content_length(stream.flow.response) <= limit:
            return False
        yield http_hooks.HttpResponseHeadersHook(stream.flow)
        yield from stream.buffered.refuse(limit)
        return True


def _size(option: str | None) -> float:
    """Return the bytes of a mitmproxy option; infinity if it is not set."""
    size = human.parse_size(option)
    return float("inf") if size is None else size
