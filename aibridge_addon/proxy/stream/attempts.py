"""The upstream attempts of one turn: which answer is dropped, and asked for again.

upstream ─┬─ an answer's head ─┐
          └─ no connection ────┴─ the table of `interception/attempts` ─┬─ show: on to the client
        ┌────────── state_drop: its body is read and dropped ◀──────────┘
        └─▶ aibridge_attempt hook, again and again during the pause ─▶ start_turn
"""

from __future__ import annotations

import random
from typing import Protocol

from mitmproxy import http
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.interception.attempts import Outcome, Step, outcome_of
from aibridge_addon.proxy.flow.state import Served, state_of
from aibridge_addon.proxy.stream.hooks import AibridgeAttemptHook
from aibridge_addon.records import UpstreamAttempt, utc_now

MAX_DROPPED = 256 * 1024
"""Bytes of a failed answer's body that are read, so that its connection can be used again."""
DROP_TIMEOUT = 2.0
"""Seconds that such a body may take to come."""


class RepeatableStream(Protocol):
    """What attempts need of the stream that makes them."""

    flow: http.HTTPFlow
    context: context.Context

    @property
    def is_repeatable(self) -> bool:
        """Whether the request can be sent again."""

    def watch(self) -> None: ...
    def start_turn(self) -> layer.CommandGenerator[None]: ...
    def cancel_upstream(self, reason: str) -> layer.CommandGenerator[None]: ...
    def keep_client_waiting(self) -> layer.CommandGenerator[None]: ...
    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]: ...


class UpstreamAttempts:
    def __init__(self, stream: RepeatableStream) -> None:
        self.timeout: commands.RequestWakeup | None = None
        """The time limit of the body that is being dropped."""
        self._stream = stream
        self._dropped = bytearray()

    def drops(self, state: Served, response: http.Response) -> layer.CommandGenerator[bool]:
        """Decide on an answer whose head has arrived; returns whether the client gets another one."""
        if self._after(state, response) is Step.SHOW:
            state.head.dispatch.attempts.answered(response.status_code)
            return False
        self._stream.flow.response = response
        self._stream.watch()
        self.timeout = commands.RequestWakeup(DROP_TIMEOUT)
        yield self.timeout
        return True

    def repeats(self, state: Served, error: str) -> bool:
        """Decide on an attempt that got no answer; returns whether another one follows."""
        if self._after(state, Outcome(None, error=error)) is Step.SHOW:
            return False
        self._stream.watch()
        return True

    def _after(self, state: Served, answer: http.Response | Outcome) -> Step:
        step = Step.SHOW
        if isinstance(answer, Outcome) or answer.status_code >= 400:
            if isinstance(answer, http.Response):
                answer = outcome_of(answer.status_code, answer.headers, utc_now())
            jitter = random.random()  # noqa: S311 (spreads load, guards nothing)
            step = state.head.dispatch.attempts.after(answer, jitter=jitter)
            if not self._stream.is_repeatable:
                step = Step.SHOW
        route = state.head.route
        state.head.bridge.emit(UpstreamAttempt(route.provider.name, route.template, step.value))
        return step

    def state_drop(self, event: events.Event) -> layer.CommandGenerator[None]:
        """The stream's server state while a failed answer's body comes."""
        if isinstance(event, http_events.ResponseData):
            self._dropped += event.data
            if len(self._dropped) > MAX_DROPPED:
                yield from self.cut()
        elif isinstance(event, http_events.ResponseEndOfMessage):
            yield from self.again()

    def cut(self) -> layer.CommandGenerator[None]:
        """Do not wait for the rest of the body."""
        yield from self._stream.cancel_upstream("given up")
        yield from self.again()

    def again(self) -> layer.CommandGenerator[None]:
        """The failed answer has been read as far as it will be: pause, and ask upstream once more."""
        stream, self.timeout = self._stream, None
        if stream.flow.response is not None:
            stream.flow.response.raw_content = bytes(self._dropped)
        self._dropped.clear()
        # The hook also lets an HTTP/1 connection forget the answer that has just ended.
        while True:
            yield AibridgeAttemptHook(stream.flow)
            if (yield from stream.check_killed(True)):
                return
            if not is_pausing(stream.flow):
                break
            yield from stream.keep_client_waiting()
        yield from stream.start_turn()


def is_kept(request: http.Request) -> bool:
    """Whether the whole request is here, to be sent again: a passthrough's body is not kept.

    mitmproxy's WebSockets speak on the stream that they were asked for on, so that a further one would not do.
    """
    return request.raw_content is not None and "upgrade" not in request.headers


def is_pausing(flow: http.HTTPFlow) -> bool:
    state = state_of(flow)
    return isinstance(state, Served) and state.head.dispatch.pause is not None
