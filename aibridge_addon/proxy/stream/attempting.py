"""The upstream attempts of one turn: what comes before each, and what follows from one that failed.

    ─▶ aibridge_dispatch hook: the request is made ready, or nobody is asked
    ─▶ upstream ─┬─ an answer's head ─┐
                 └─ no connection ────┴─ Attempts.after ─┬─ show: on to the client
            ┌──────────── its body is read and dropped ◀─┘
            └─▶ aibridge_attempt hook, again and again during the pause ─▶ start_turn

What has been given up may still send something: events of a turn that is not the one under way are dropped.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime

from mitmproxy import http
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.interception.attempts import Outcome, Step, outcome_of
from aibridge_addon.proxy.flow import dispatch
from aibridge_addon.proxy.flow.state import FlowState, state_of
from aibridge_addon.proxy.stream.stream import BridgeHttpStream, TurnIds
from aibridge_addon.records import UpstreamAttempt

MAX_DROPPED = 256 * 1024
"""Bytes of a failed answer's body that are read, so that its connection can be used again."""
DROP_TIMEOUT = 2.0
"""Seconds that such a body may take to come."""

_Answer = (
    http_events.ResponseHeaders,
    http_events.ResponseData,
    http_events.ResponseTrailers,
    http_events.ResponseEndOfMessage,
    http_events.ResponseProtocolError,
)


@dataclass
class AibridgeDispatchHook(commands.StartHook):
    """`flow.request` is about to go upstream: make it ready. With `flow.response` set, nobody is asked."""

    flow: http.HTTPFlow


@dataclass
class AibridgeAttemptHook(commands.StartHook):
    """An attempt has failed; its answer, if any, is `flow.response`. Wait before the next one."""

    flow: http.HTTPFlow


class AttemptingStream(BridgeHttpStream):
    def __init__(self, ctx: context.Context, stream_id: int, parent: TurnIds) -> None:
        super().__init__(ctx, stream_id, parent)
        self.dropping: commands.RequestWakeup | None = None
        """The time limit of the body that is being dropped."""

    # --- before an attempt ------------------------------------------------------------------------------------

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        state = state_of(self.flow)
        if state is not None and dispatch.is_needed(state):
            yield AibridgeDispatchHook(self.flow)
            if (yield from self.check_killed(True)):
                return False
            if self.flow.response is not None:
                yield from self._refused(state, self.flow.response)
                return False
        return (yield from super().make_server_connection())

    def _refused(self, state: FlowState, response: http.Response) -> layer.CommandGenerator[None]:
        """Nobody is asked, so no other hook will come for this flow."""
        yield from self._ends_here(state.refusal)
        if self.answer_begun:
            yield from self.break_off(state.refusal)
        else:
            yield from self.answer(response)

    # --- after an attempt -------------------------------------------------------------------------------------

    def state_wait_for_response_headers(self, event: http_events.ResponseHeaders) -> layer.CommandGenerator[None]:
        response = event.response
        if self.state is not None:
            dispatch.conceal(self.flow, self.state)
            if self._after(self.state, response) is not Step.SHOW:
                self.flow.response = response
                self._watch()
                self.server_state = self.state_drop_response_body
                self.dropping = commands.RequestWakeup(DROP_TIMEOUT)
                yield self.dropping
                return
            self.state.attempts.answered(response.status_code)
        yield from super().state_wait_for_response_headers(event)

    def _after(self, state: FlowState, answer: http.Response | Outcome) -> Step:
        step = Step.SHOW
        if isinstance(answer, Outcome) or answer.status_code >= 400:
            if isinstance(answer, http.Response):
                answer = outcome_of(answer.status_code, answer.headers, datetime.now(UTC))
            step = state.attempts.after(answer, jitter=random.random())  # noqa: S311 (spreads load, guards nothing)
            if not self._is_repeatable:
                step = Step.SHOW
        state.bridge.emit(UpstreamAttempt(state.route.provider.name, state.route.template, step.value))
        return step

    @property
    def _is_repeatable(self) -> bool:
        """Whether the whole request is here: a passthrough's body is not kept.

        mitmproxy's WebSockets speak on the stream that they were asked for on, so that a further one would not do.
        """
        request = self.flow.request
        return (
            self.client_state == self.state_done
            and request.raw_content is not None
            and "upgrade" not in request.headers
        )

    def state_drop_response_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, http_events.ResponseData):
            self.response_body_buf += event.data
            if len(self.response_body_buf) > MAX_DROPPED:
                yield from self._cut_attempt()
        elif isinstance(event, http_events.ResponseEndOfMessage):
            yield from self._try_again()

    def _cut_attempt(self) -> layer.CommandGenerator[None]:
        error = http_events.RequestProtocolError(self.upstream_id, "given up", http_events.ErrorCode.CANCEL)
        yield SendHttp(error, self.context.server)
        yield from self._try_again()

    def _try_again(self) -> layer.CommandGenerator[None]:
        self.dropping = None
        if self.flow.response is not None:
            self.flow.response.raw_content = bytes(self.response_body_buf)
        self.response_body_buf.clear()
        # The hook also lets an HTTP/1 connection forget the answer that has just ended.
        while True:
            yield AibridgeAttemptHook(self.flow)
            if (yield from self.check_killed(True)):
                return
            if self.state is None or not self.state.pausing:
                break
            yield from self.keep_client_waiting()
        yield from self.start_turn()

    def keep_client_waiting(self) -> layer.CommandGenerator[None]:
        """A client that has been sent an answer's beginning is told that somebody is there."""
        yield from ()

    def handle_protocol_error(
        self, event: http_events.RequestProtocolError | http_events.ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        if self.state is not None:
            dispatch.conceal(self.flow, self.state)
        if isinstance(event, http_events.ResponseProtocolError) and self.state is not None and self._is_repeatable:
            if self.server_state == self.state_drop_response_body:
                yield from self._try_again()
                return
            awaited = self.server_state == self.state_wait_for_response_headers
            if awaited and self._after(self.state, Outcome(None, error=event.message)) is not Step.SHOW:
                self._watch()
                yield from self._try_again()
                return
        yield from super().handle_protocol_error(event)

    # --- what comes in between --------------------------------------------------------------------------------

    def _watch(self) -> None:
        """From here on, wake-ups, events of other turns, and a client that goes while a hook waits, have to be seen."""
        self._handle_event = self._handle_event_or_wakeup
        self.handle_event = self._handle_event_watchfully  # type: ignore[method-assign]

    def _handle_event_or_wakeup(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Wakeup):
            yield from self.woken(event.command)
        elif not isinstance(event, _Answer) or event.stream_id == self.upstream_id:
            yield from super()._handle_event(event)

    def woken(self, command: commands.RequestWakeup) -> layer.CommandGenerator[None]:
        if command is self.dropping and self.client_state == self.state_done:
            yield from self._cut_attempt()

    def _handle_event_watchfully(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self._paused and isinstance(event, http_events.RequestProtocolError) and self.state is not None:
            self.state.client_gone()  # the hook that we wait for need not go on
        yield from super().handle_event(event)
