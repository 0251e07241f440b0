"""End a flow before its answer is complete: with an error of the bridge, or by cutting the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mitmproxy import flow as mitm_flow
from mitmproxy import http
from mitmproxy.proxy import context, layer
from mitmproxy.proxy.layers.http import DropStream
from mitmproxy.proxy.layers.http import _hooks as http_hooks
from mitmproxy.proxy.utils import ReceiveBuffer

from aibridge_addon.dialects.base import DONE, NOTHING, AnswerError
from aibridge_addon.proxy.flow.state import (
    ORIGIN_FORM,
    Bridged,
    FlowState,
    Foreign,
    Refusal,
    plain_error,
    refuse,
    route_of,
)
from aibridge_addon.proxy.stream.client_side import ClientSide
from aibridge_addon.proxy.stream.turns import UpstreamTurns
from aibridge_addon.wire import sse


class EndingStream(Protocol):
    """The part of `BridgeHttpStream` that an early end uses."""

    flow: http.HTTPFlow
    context: context.Context
    client: ClientSide
    turns: UpstreamTurns
    stream_id: int
    answer_begun: bool
    request_body_buf: ReceiveBuffer

    @property
    def state(self) -> FlowState: ...
    @property
    def can_append(self) -> bool:
        """Whether an error event can be appended to the client's answer."""

    def cancel_upstream(self, reason: str) -> layer.CommandGenerator[None]:
        """Cancel the rest of the upstream's answer."""

    def ignore_events(self) -> None:
        """Ignore all further events of the client and the upstream."""


class EarlyEnd:
    def __init__(self, stream: EndingStream) -> None:
        self._stream = stream

    def run_error_hook(self, message: str) -> layer.CommandGenerator[None]:
        """Run the `error` hook. mitmproxy runs no further hook for this flow."""
        self._stream.flow.error = mitm_flow.Error(message)
        yield http_hooks.HttpErrorHook(self._stream.flow)

    def refuse_head(self, problem: str) -> layer.CommandGenerator[None]:
        """Refuse a request by its head, before any hook has run."""
        flow, address = self._stream.flow, self._stream.context.server.address
        flow.error = mitm_flow.Error(problem)
        if address is not None and not flow.request.host and not flow.metadata.get(ORIGIN_FORM):
            flow.request.data.host, flow.request.data.port = address[:2]  # mitmproxy sets them after its checks
        yield http_hooks.HttpRequestHeadersHook(flow)
        yield from self.run_error_hook(problem)
        state = self._stream.state
        http1 = not (flow.request.is_http2 or flow.request.is_http3)
        close = {"connection": "close"} if http1 else {}  # how the rest is framed is not certain
        if isinstance(state, Foreign):
            yield from self.send_whole(plain_error(400, problem, headers=close))
        else:
            yield from self.send_whole(refuse(flow, state, Refusal(400, problem, headers=close)))

    def fail(self, error: AnswerError) -> layer.CommandGenerator[None]:
        """End an answer with the error of a turn, and without the `[DONE]` that no turn has sent."""
        yield from self.run_error_hook(error.message)
        yield from self.break_off(error.message, error.details, done=False)

    def unreadable(self, error_type: str, reason: str) -> layer.CommandGenerator[None]:
        """End an answer that cannot be decoded, although the client needs it decoded."""
        state = self._stream.state
        if isinstance(state, Bridged) and state.exchange is not None:
            state.exchange.end(error_type, reason)
        yield from self.run_error_hook(f"the answer cannot be decoded: {reason}")
        yield from self._stream.cancel_upstream(reason)
        yield from self.break_off("the upstream's answer cannot be decoded")

    def break_off(
        self, message: str, members: Mapping[str, Any] = NOTHING, *, done: bool = True
    ) -> layer.CommandGenerator[None]:
        """End an answer that has begun and cannot be completed: with the dialect's error event, else by cutting it.

        `members`: further members of the error event. `done`: whether `[DONE]` may follow (Chat Completions).
        """
        stream = self._stream
        state = stream.state
        stream.flow.live = False
        end = stream.client.cut(message)
        if stream.can_append and not isinstance(state, Foreign):
            event = route_of(state).errors.error_event(message, members)
            last = stream.client.last(event if done else event.removesuffix(sse.event("", DONE)))
            if last is not None:
                yield from last
                end = stream.client.end()
        yield from self._finish()
        yield end

    def reject(self, refusal: Refusal) -> layer.CommandGenerator[None]:
        """Run the `error` hook, and answer with a refusal."""
        yield from self.run_error_hook(refusal.message)
        yield from self.respond(refusal)

    def refuse(self, refusal: Refusal) -> layer.CommandGenerator[None]:
        """End the flow with an error: as the answer, or as the end of the answer that has begun."""
        yield from self.break_off(refusal.message) if self._stream.answer_begun else self.respond(refusal)

    def respond(self, refusal: Refusal) -> layer.CommandGenerator[None]:
        """Answer with an error in the provider's shape. The rest of the request is not read."""
        state = self._stream.state
        assert not isinstance(state, Foreign)
        yield from self.send_whole(refuse(self._stream.flow, state, refusal))

    def send_refusal(self, message: str) -> layer.CommandGenerator[None]:
        """Send `flow.response`, which refuses the request, or end the answer that has begun."""
        response = self._stream.flow.response
        if self._stream.answer_begun or response is None:
            yield from self.break_off(message)
        else:
            yield from self.send_whole(response)

    def send_whole(self, response: http.Response) -> layer.CommandGenerator[None]:
        """Send a complete answer of the bridge itself, whatever state the request is in."""
        stream = self._stream
        stream.flow.live = False
        stream.request_body_buf.clear()
        yield stream.client.head(response)
        if stream.flow.request.method != "HEAD":
            yield from stream.client.maybe_data(response.raw_content or b"")
        yield from self._finish()
        yield stream.client.end()

    def _finish(self) -> layer.CommandGenerator[None]:
        self._stream.ignore_events()
        yield from self._stream.turns.drop()
        yield DropStream(self._stream.stream_id)
