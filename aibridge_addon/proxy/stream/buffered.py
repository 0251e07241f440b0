"""A buffered answer: it is streamed once its first bytes show that it is a stream, or when it outgrows its limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from mitmproxy import http
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.utils import ReceiveBuffer

from aibridge_addon.proxy.flow.answer import is_streamed
from aibridge_addon.proxy.flow.state import RETRY_BODY_LIMIT, Bridged, FlowState, Refusal
from aibridge_addon.proxy.stream.answer import Spliced, Tapped
from aibridge_addon.proxy.stream.counted_bodies import CountedBodies
from aibridge_addon.proxy.stream.early_end import EarlyEnd
from aibridge_addon.proxy.stream.turns import UpstreamTurns


class BufferingStream(Protocol):
    """The part of `BridgeHttpStream` that a buffered answer uses."""

    flow: http.HTTPFlow
    response_body_buf: ReceiveBuffer
    server_state: Callable[[Any], layer.CommandGenerator[None]]
    answer: Tapped | Spliced | None
    early_end: EarlyEnd
    turns: UpstreamTurns
    buffers: CountedBodies

    @property
    def state(self) -> FlowState: ...
    def opened(self) -> Tapped | Spliced | None:
        """Return what turns the answer into the client's. None: mitmproxy forwards it."""

    def start_response_stream(self) -> layer.CommandGenerator[None]: ...
    def cancel_upstream(self, reason: str) -> layer.CommandGenerator[None]: ...


class BufferedAnswer:
    def __init__(self, stream: BufferingStream) -> None:
        self._stream = stream

    @property
    def is_stored(self) -> bool:
        """Whether the request is about an answer of several turns, so that one about another turn may follow."""
        state = self._stream.state
        return isinstance(state, Bridged) and state.stored is not None

    def grew(self) -> layer.CommandGenerator[None]:
        """Decide about an answer of which more was buffered."""
        stream = self._stream
        state = stream.state
        if isinstance(state, Bridged) and state.undecided:
            beginning = bytes(stream.response_body_buf)
            if is_streamed(stream.flow, state, beginning):
                yield from self._stream_it(beginning)
            return
        answer = stream.opened()
        size = len(stream.response_body_buf)
        if isinstance(state, Bridged) and (stored := state.stored) is not None:
            if size > stored.limit or not stream.buffers.take_answer(state, size):
                yield from self.refuse(stored.limit)  # forwarded unread, it might show the client an injected call
            return
        is_too_large = size > (RETRY_BODY_LIMIT if answer is None else answer.limit)
        if is_too_large or not stream.buffers.take_answer(state, size):
            yield from self._outgrown(answer)

    def _outgrown(self, answer: Tapped | Spliced | None) -> layer.CommandGenerator[None]:
        """Handle an answer that is larger than its limit."""
        stream = self._stream
        if isinstance(answer, Spliced):
            # Forwarded unread, it might show the client an injected call.
            yield from self.refuse(answer.limit)
            return
        # It is too large to be a refusal of the added option, so it is forwarded.
        if isinstance(state := stream.state, Bridged):
            state.usage = stream.answer = None
        yield from self._stream_it(bytes(stream.response_body_buf))

    def refuse(self, limit: float) -> layer.CommandGenerator[None]:
        """End the flow, because its answer is larger than `limit` bytes."""
        stream, state = self._stream, self._stream.state
        message = f"the upstream's answer is larger than {limit} bytes, or limits.buffered is used up"
        if isinstance(state, Bridged) and state.exchange is not None:
            state.exchange.end("answer_too_large", message)
        yield from stream.early_end.run_error_hook(message)
        yield from stream.cancel_upstream(message)
        yield from stream.early_end.refuse(Refusal(502, message))

    def _stream_it(self, body: bytes) -> layer.CommandGenerator[None]:
        stream = self._stream
        stream.response_body_buf.clear()
        stream.buffers.give_answer_back(stream.state)
        yield from stream.start_response_stream()
        yield from stream.server_state(http_events.ResponseData(stream.turns.id, body))
