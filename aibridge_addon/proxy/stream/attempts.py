"""The upstream attempts of one turn: drop a failed answer and send the request again.

upstream ─┬─ an answer's head ─┐
          └─ no connection ────┴─ the table of `interception/attempts` ─┬─ show: forward it to the client
        ┌────────── state_drop: its body is read and dropped ◀──────────┘
        └─▶ aibridge_attempt hook, repeated during the pause ─▶ start_turn
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from mitmproxy import http
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.dialects.errors import error_of_body
from aibridge_addon.interception.attempts import Outcome, Step, outcome_of
from aibridge_addon.proxy.flow.plan_limits import limits_came
from aibridge_addon.proxy.flow.state import Served, state_of
from aibridge_addon.proxy.stream.hooks import AibridgeAttemptHook
from aibridge_addon.proxy.stream.http2 import RequestUnprocessed
from aibridge_addon.proxy.stream.keep_alives import KeepAlives
from aibridge_addon.proxy.stream.turns import UpstreamTurns
from aibridge_addon.records import UpstreamAttempt, utc_now
from aibridge_addon.wire.codings import CodingError, decode_all

MAX_DROPPED = 256 * 1024
"""Bytes. Up to this size a failed answer's body is read, so that its connection can be reused."""
DROP_TIMEOUT = 2.0
"""Seconds. Maximum time for reading such a body."""


class RepeatableStream(Protocol):
    """The part of `BridgeHttpStream` that attempts use."""

    flow: http.HTTPFlow
    context: context.Context
    server_state: Callable[[Any], layer.CommandGenerator[None]]
    keep_alives: KeepAlives
    turns: UpstreamTurns

    @property
    def is_repeatable(self) -> bool:
        """Whether the request can be sent again."""

    def state_wait_for_response_headers(self, event: http_events.ResponseHeaders) -> layer.CommandGenerator[None]: ...
    def watch(self) -> None: ...
    def start_turn(self) -> layer.CommandGenerator[None]: ...
    def cancel_upstream(self, reason: str) -> layer.CommandGenerator[None]: ...
    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]: ...


class UpstreamAttempts:
    def __init__(self, stream: RepeatableStream) -> None:
        self.timeout: commands.RequestWakeup | None = None
        """The time limit for the body that is being dropped."""
        self._stream = stream
        self._dropped = bytearray()

    def drops(self, state: Served, response: http.Response) -> layer.CommandGenerator[bool]:
        """Decide about an answer whose head has arrived. Returns whether it is dropped for another attempt."""
        if self._after(state, response) is Step.SHOW:
            state.head.dispatch.attempts.answered(response.status_code)
            return False
        limits_came(state.head, response.headers)
        self._stream.flow.response = response
        self._stream.watch()
        self.timeout = commands.RequestWakeup(DROP_TIMEOUT)
        yield self.timeout
        return True

    def repeats(self, state: Served, error: http_events.ResponseProtocolError) -> bool:
        """Decide about an attempt without an answer. Returns whether another one follows."""
        stream = self._stream
        if not stream.is_repeatable or stream.server_state == self.state_drop:
            return stream.is_repeatable
        if stream.server_state != stream.state_wait_for_response_headers:
            return False
        # While tools ran, the upstream or a firewall may have closed the connection. It looks open until it is used.
        was_stale = stream.turns.reused and not stream.context.server.connected
        unprocessed = was_stale or isinstance(error, RequestUnprocessed)
        if self._after(state, Outcome(None, error=error.message, unprocessed=unprocessed)) is Step.SHOW:
            return False
        stream.watch()
        return True

    def _after(self, state: Served, answer: http.Response | Outcome) -> Step:
        step, refused_key = Step.SHOW, None
        if isinstance(answer, Outcome) or answer.status_code >= 400:
            if isinstance(answer, http.Response):
                answer = outcome_of(answer.status_code, answer.headers, utc_now())
            jitter = random.random()  # noqa: S311 (spreads load, protects no secret)
            step = state.head.dispatch.attempts.after(answer, jitter=jitter)
            refused_key = state.head.dispatch.attempts.refused_key
            if not self._stream.is_repeatable:
                step = Step.SHOW
        route, attempts = state.head.route, state.head.dispatch.attempts
        state.head.bridge.emit(
            UpstreamAttempt(
                *(route.provider.name, route.template, step.value),
                refused_key=refused_key,
                keys_tried=attempts.keys_tried if step in (Step.SHOW, Step.EXHAUSTED) else None,
            )
        )
        return step

    def _learn(self) -> None:
        """Read the error of the answer that was dropped, if it refuses a central key."""
        state, response = state_of(self._stream.flow), self._stream.flow.response
        if response is None or not isinstance(state, Served) or state.head.dispatch.attempts.refused_key is None:
            return
        try:
            body = decode_all(bytes(self._dropped), response.headers.get("content-encoding"), MAX_DROPPED)
        except CodingError:
            body = b""
        state.head.dispatch.attempts.learn(error_of_body(body, default_type=""))

    def state_drop(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Read the body of a failed answer. This is the stream's `server_state` meanwhile."""
        if isinstance(event, http_events.ResponseData):
            self._dropped += event.data
            if len(self._dropped) > MAX_DROPPED:
                yield from self.stop_reading()
        elif isinstance(event, http_events.ResponseEndOfMessage):
            yield from self.repeat()

    def stop_reading(self) -> layer.CommandGenerator[None]:
        """Cancel the rest of a failed answer's body, and go on with the next attempt."""
        yield from self._stream.cancel_upstream("the rest of a failed answer is not read")
        yield from self.repeat()

    def repeat(self) -> layer.CommandGenerator[None]:
        """Wait for the pause, and send the request upstream again."""
        stream, self.timeout = self._stream, None
        self._learn()
        if stream.flow.response is not None:
            stream.flow.response.raw_content = bytes(self._dropped)
        self._dropped.clear()
        # mitmproxy's Http1Client frees its stream only after the end-of-message event was handled. Waiting for the
        # hook makes sure of that.
        while True:
            yield AibridgeAttemptHook(stream.flow)
            if (yield from stream.check_killed(True)):
                return
            if not is_pausing(stream.flow):
                break
            yield from stream.keep_alives.send()
        yield from stream.start_turn()


def is_kept(request: http.Request) -> bool:
    """Return whether the whole request is buffered, so that it can be sent again. A passthrough's body is not.

    A WebSocket handshake cannot be repeated: mitmproxy uses the upstream stream of the first one.
    """
    return request.raw_content is not None and "upgrade" not in request.headers


def is_pausing(flow: http.HTTPFlow) -> bool:
    state = state_of(flow)
    return isinstance(state, Served) and state.head.dispatch.pause is not None
