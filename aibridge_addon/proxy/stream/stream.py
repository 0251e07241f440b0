"""The bridge's subclass of mitmproxy's `HttpStream`. No other class depends on how mitmproxy's streams work.

mitmproxy creates an `HttpStream` for each request. It is a state machine: `client_state` and `server_state` are methods
that take events and yield commands. The subclass differs from it as follows:

- A request body above the bridge's limit is refused while it arrives.
- A request is prepared before each attempt (`aibridge_dispatch` hook). A failed answer may be dropped.
- The terminal event of a bridged answer is held until its rows are committed (`aibridge_commit` hook).
- A complete answer may be followed by another turn (`aibridge_turn` hook), on a new stream id over the same upstream
  connection. Tools run at the terminal event. The client gets keep-alives while they run or a pause lasts.
- If the upstream cannot be reached or breaks off, the client gets an error in the provider's shape.

    upstream ─▶ attempts ─┬─ dropped ─▶ start_turn
                          └─ shown ─▶ incoming ─▶ Tapped ──┬─▶ now ─▶ client
                                                  Spliced ─┴─▶ end ─▶ rows committed ─▶ client
"""

from __future__ import annotations

from collections.abc import Callable
from logging import WARNING

from mitmproxy import http
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import HttpStream, SendHttp
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.proxy.flow import dispatch
from aibridge_addon.proxy.flow.answer import stream_answer
from aibridge_addon.proxy.flow.http1 import error_in, frame_request
from aibridge_addon.proxy.flow.internal_error import FAILED
from aibridge_addon.proxy.flow.state import (
    FOREIGN,
    TUNNEL,
    Bridged,
    FlowState,
    Foreign,
    Refusal,
    Refused,
    Rows,
    Served,
    plain_error,
    state_of,
)
from aibridge_addon.proxy.flow.websocket import switch_error
from aibridge_addon.proxy.stream import upgrade
from aibridge_addon.proxy.stream.answer import Output, Spliced, Tapped, answer_for
from aibridge_addon.proxy.stream.attempts import UpstreamAttempts, is_kept
from aibridge_addon.proxy.stream.body import BodyError, Pipe, incoming
from aibridge_addon.proxy.stream.body_size import BodySize
from aibridge_addon.proxy.stream.buffered import BufferedAnswer
from aibridge_addon.proxy.stream.client_side import ClientSide
from aibridge_addon.proxy.stream.counted_bodies import CountedBodies
from aibridge_addon.proxy.stream.early_end import EarlyEnd
from aibridge_addon.proxy.stream.guard import StreamGuard
from aibridge_addon.proxy.stream.hooks import AibridgeCommitHook, AibridgeDispatchHook, AibridgeTurnHook
from aibridge_addon.proxy.stream.keep_alives import KeepAlives
from aibridge_addon.proxy.stream.next_turn import NextTurn
from aibridge_addon.proxy.stream.request import bring_flow, for_upstream, problem_of
from aibridge_addon.proxy.stream.short_way import AnswerRead
from aibridge_addon.proxy.stream.turns import TurnIds, UpstreamTurns

NOT_RECORDED = "the record of this answer could not be written"


class BridgeHttpStream(HttpStream):
    def __init__(self, ctx: context.Context, stream_id: int, parent: TurnIds) -> None:
        super().__init__(ctx, stream_id)
        self.buffers = CountedBodies(parent.buffers)
        self.turns = UpstreamTurns(self, parent, self.buffers)
        self.client = ClientSide(ctx.client, stream_id)
        self.attempts = UpstreamAttempts(self)
        self.next_turn = NextTurn(self)
        self.early_end = EarlyEnd(self)
        self.guard = StreamGuard(self)
        self.body_size = BodySize(self, parent.limits.passthrough_body)
        self.buffered = BufferedAnswer(self)
        self.keep_alives = KeepAlives(self)
        self.incoming = Pipe()
        self.answer: Tapped | Spliced | None = None
        """Turns the upstream answer into the client's. None before its head, and if the flow is not bridged."""
        self.answer_begun = False
        """Whether the answer's headers were sent to the client."""
        self.connected = False
        """Whether the request had an upstream connection."""
        self.convert: Callable[[bytes], bytes | Output]
        self.tapping: Callable[[events.Event], layer.CommandGenerator[None]] | None = None
        """The state in which pieces of an answer go to `convert`, and are sent as they are. None: not reached."""
        self.held = b""
        """The end of a body, to send when its rows are committed."""

    @property
    def maybe_flow(self) -> http.HTTPFlow | None:
        return getattr(self, "flow", None)  # not set before the request's head

    @property
    def state(self) -> FlowState:
        return FOREIGN if (flow := self.maybe_flow) is None else state_of(flow)

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            self.turns.handling(True)
            if type(event) is http_events.ResponseData and self.tapping is self.server_state and self._paused is None:
                # The same as below in fewer steps: an answer may have thousands of pieces.
                if isinstance(made := self.convert(event.data), bytes):
                    yield SendHttp(event, self.context.client)
                    self.turns.handling(False)
                    return
                event = AnswerRead(event.stream_id, made)
            self.guard.before(event, self._paused)
            yield from super().handle_event(event)
            self.turns.handling(False)
        except Exception:
            if self.child_layer is not None:
                raise  # the bytes of an upgraded connection or tunnel are no answer to end
            self.guard.failed()
            self._handle_event = self.guard.handle_rest
            yield from super().handle_event(events.Start())
            self.turns.handling(False)

    @property
    def ends_with_hook(self) -> bool:
        over = (self.state_done, self.state_errored)
        return self.client_state != self.state_errored and self.server_state not in over

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:
        if (yield from super().check_killed(emit_error_hook)):
            return True
        if FAILED in self.flow.metadata:
            yield from self.guard.end(run_hook=emit_error_hook)
            return True
        return False

    # --- the request ------------------------------------------------------------------------------------------

    def state_wait_for_request_headers(self, event: http_events.RequestHeaders) -> layer.CommandGenerator[None]:
        bring_flow(event, self.context, self.mode)
        yield from super().state_wait_for_request_headers(event)
        if self.client_state == self.state_consume_request_body:
            yield from self.check_body_size(True)

    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        consumed: layer.CommandGenerator[None] = super().state_consume_request_body(event)
        ends = isinstance(event, http_events.RequestEndOfMessage)
        return self.body_size.end_buffered(consumed) if ends else consumed

    def start_request_stream(self) -> layer.CommandGenerator[None]:
        return self.body_size.start_stream(super().start_request_stream())

    def check_body_size(self, request: bool) -> layer.CommandGenerator[bool]:
        if request:
            return self.body_size.check_request(self.client_state != self.state_wait_for_request_headers)
        return super().check_body_size(False) if isinstance(self.state, Foreign) else self.body_size.check_answer()

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        state = self.state
        if isinstance(state, Served) and dispatch.is_needed(state.head):
            yield AibridgeDispatchHook(self.flow)
            if (yield from self.check_killed(True)):
                return False
            if isinstance(refused := self.state, Refused):
                yield from self.early_end.run_error_hook(refused.message)
                yield from self.early_end.send_refusal(refused.message)
                return False
        connected = self.connected = yield from super().make_server_connection()
        if connected and self.context.server.alpn not in (b"h2", b"h3"):
            frame_request(self.flow.request)
            self.flow.request.trailers = None  # mitmproxy raises an error for trailers over HTTP/1
        return connected

    @property
    def is_repeatable(self) -> bool:
        return bool(self.client_state == self.state_done) and is_kept(self.flow.request)

    def handle_connect_regular(self) -> layer.CommandGenerator[None]:
        error = None
        if self.flow.metadata.get(TUNNEL) and not self.flow.response:
            # Connect at once: the tunnel is relayed unread, and in some protocols the server sends first.
            error = yield commands.OpenConnection(self.context.server)
        if error:
            self.flow.response = plain_error(502, "the host could not be reached", "api_error")
        yield from super().handle_connect_regular()  # type: ignore[no-untyped-call]

    # --- the answer -------------------------------------------------------------------------------------------

    def state_wait_for_response_headers(self, event: http_events.ResponseHeaders) -> layer.CommandGenerator[None]:
        if isinstance(state := self.state, Served):
            invalid = error_in(event.response) if self.context.options.validate_inbound_headers else None
            if error := invalid or switch_error(self.flow, state, event.response):
                yield commands.Log(f"aibridge: {error}", WARNING)
                yield commands.CloseConnection(self.flow.server_conn)
                code = http_events.ErrorCode.RESPONSE_VALIDATION_FAILED
                yield from self.handle_protocol_error(http_events.ResponseProtocolError(self.turns.id, error, code))
                return
            if (yield from self.attempts.drops(state, event.response)):
                self.server_state = self.attempts.state_drop
                return
        yield from super().state_wait_for_response_headers(event)
        if isinstance(state := self.state, Bridged) and (pipe := incoming(state)):
            self.incoming = pipe
            self.watch()

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        if request:
            if problem := problem_of(self.flow, self.context, self.mode):
                yield from self.early_end.refuse_head(problem)
            return problem is not None
        return not isinstance(self.state, Served) and (yield from super().check_invalid(request))

    def opened(self) -> Tapped | Spliced | None:
        state, response = self.state, self.flow.response
        if self.answer is None and response is not None and isinstance(state, Bridged) and state.exchange is not None:
            self.answer = answer_for(state, state.exchange, response)
        return self.answer

    def start_response_stream(self) -> layer.CommandGenerator[None]:
        answer = self.opened()
        if self.answer_begun and isinstance(answer, Spliced):
            self._read_body(answer)
            return
        if answer is not None and self.flow.response is not None:
            self.client.adopt(self.flow.response, store=self.context.options.store_streamed_bodies)
            at_head = self.server_state == self.state_wait_for_response_headers
            if at_head and isinstance(state := self.state, Bridged) and state.buffers:
                self.server_state = self.state_consume_response_body
                return
        if answer is None or self.flow.response is None:
            yield from super().start_response_stream()
        else:  # without mitmproxy's line in the log for each streamed answer
            head = http_events.ResponseHeaders(self.stream_id, self.flow.response, end_stream=False)
            yield SendHttp(head, self.context.client)
        self.answer_begun = True
        if isinstance(answer, Spliced):
            answer.begin()
            # From here on the client waits for bytes, so timers and its disconnection have to be handled at any time.
            self.watch()
            yield from self.keep_alives.start()
        if answer is not None:
            self._read_body(answer)

    def _read_body(self, answer: Tapped | Spliced) -> None:
        self.server_state, self.convert = self.state_read_answer, answer.convert
        if isinstance(state := self.state, Bridged) and self.client.only_sends and not (incoming(state) or self.debug):
            if isinstance(answer, Tapped) and answer.is_verbatim and self.turns.is_first:
                self.tapping = self.server_state
            self.turns.shorten(answer)

    def state_read_answer(self, event: events.Event) -> layer.CommandGenerator[None]:
        answer = self.answer
        assert answer is not None
        if isinstance(event, http_events.ResponseData | AnswerRead):
            output = event.output if isinstance(event, AnswerRead) else answer.on_data(event.data)
            sent = yield from self._send(output)
            if sent and isinstance(answer, Spliced) and answer.waiting:
                yield from self._is_last_turn(already_streamed=True, body_ended=False)
        elif isinstance(event, http_events.ResponseTrailers) and isinstance(answer, Tapped):
            assert self.flow.response is not None
            self.flow.response.trailers = event.trailers
        elif isinstance(event, http_events.ResponseEndOfMessage) and (yield from self._send(answer.on_end())):
            yield from self.send_response(already_streamed=True)

    def _send(self, output: Output) -> layer.CommandGenerator[bool]:
        """Send the output of an answer. Returns False if the stream has ended."""
        yield from self.client.maybe_data(output.now)
        if output.error is not None:
            if output.cancels:
                yield from self.cancel_upstream(output.error.message)
            yield from self.early_end.fail(output.error)
            return False
        if output.unreadable is not None:
            yield from self.early_end.unreadable("undecodable_answer", output.unreadable)
            return False
        return output.end is None or (yield from self._send_end(output.end))

    def _send_end(self, end: bytes) -> layer.CommandGenerator[bool]:
        """Send the answer's end when its rows are committed. Returns False if the stream has ended."""
        assert self.answer is not None
        if not self.answer.is_stream:
            self.held = end  # sent after the `response` hook, which waits for the rows
            return True
        yield AibridgeCommitHook(self.flow)
        if (yield from self.check_killed(True)):
            return False
        if self._is_lost:
            yield from self.early_end.run_error_hook(NOT_RECORDED)
            yield from self.early_end.break_off(NOT_RECORDED)
            return False
        yield from self.client.maybe_data(end)
        return True

    @property
    def _is_lost(self) -> bool:
        return isinstance(state := self.state, Bridged) and state.rows is Rows.LOST

    def cancel_upstream(self, reason: str) -> layer.CommandGenerator[None]:
        """Cancel the rest of the upstream's answer."""
        yield SendHttp(self.turns.cancelled(reason), self.context.server)

    def cancel_current(self, reason: str) -> layer.CommandGenerator[None]:
        if self.connected and self.server_state not in (self.state_done, self.state_errored):
            yield from self.cancel_upstream(reason)

    # --- turns ------------------------------------------------------------------------------------------------

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        if self.flow.response is not None and not (self.flow.request.is_http2 or self.flow.request.is_http3):
            self.flow.response.trailers = None  # mitmproxy raises an error for trailers over HTTP/1
        if self.flow.request.method == "HEAD" and self.flow.response is not None:
            self.flow.response.raw_content = b""  # with the length that it has for GET
        answer = self.opened()
        if not already_streamed and isinstance(answer, Spliced) and answer.is_refused:  # noqa: SIM102
            if not (yield from self._turn_over()):
                return
        if not already_streamed and isinstance(answer, Spliced) and not self._is_later_error(answer):
            content = (self.flow.response and self.flow.response.raw_content) or b""
            if (output := answer.on_body(content)) is not None:
                already_streamed = True
                if not self.answer_begun:
                    stream_answer(self.flow, answer.content_type)
                    yield from self.start_response_stream()
                if not (yield from self._send(output)):
                    return
        if (yield from self._is_last_turn(already_streamed)):
            if answer is not None and self.flow.response is not None:
                self.client.complete(self.flow.response, self.held, streamed=already_streamed)
            yield from super().send_response(already_streamed)

    def _is_later_error(self, answer: Spliced) -> bool:
        """Whether a later turn was answered with an error status, after the client's answer has begun."""
        return self.answer_begun and not answer.exchange.succeeded

    def _is_last_turn(self, already_streamed: bool, body_ended: bool = True) -> layer.CommandGenerator[bool]:
        """Let the addon decide about a complete answer. Returns False if it is not the last, or the stream is over.

        `body_ended`: false if only the terminal event was read.
        """
        state, answer = self.state, self.opened()
        if not isinstance(state, Bridged) or answer is None:
            return already_streamed or not self.buffered.is_stored or (yield from self._turn_over())
        if isinstance(answer, Tapped):
            if not already_streamed and state.asks_again:
                return (yield from self._turn_over())
            if not already_streamed and self.flow.response is not None:
                answer.exchange.feed(self.flow.response.raw_content or b"", last=True)
            return True
        if answer.exchange.ended and already_streamed:
            return True
        if self._is_later_error(answer) and not already_streamed:
            # The client has the headers, so it gets an error event.
            content = (self.flow.response and self.flow.response.raw_content) or b""
            yield from self.early_end.fail(answer.failed_turn(content))
            return False
        self.watch()
        if not (yield from self._turn_over(body_ended)):
            return False
        return not already_streamed or answer.end_sent or (yield from self._send_end(answer.end()))

    def _turn_over(self, body_ended: bool = True) -> layer.CommandGenerator[bool]:
        """Run the `aibridge_turn` hook. Returns False if another turn follows or the client has disconnected."""
        # The hook also gives mitmproxy's Http1Client time to free its stream: see `UpstreamAttempts.repeat`.
        while True:
            yield AibridgeTurnHook(self.flow)
            if (yield from self.check_killed(True)):
                return False
            state = self.state
            if not isinstance(state, Bridged) or state.tools is None or state.tools.calls is None:
                break
            yield from self.keep_alives.send()
        if self.flow.response is not None:
            return True
        if body_ended:
            yield from self.start_turn()
        else:
            self.incoming = Pipe()
            self.server_state = self.next_turn.state_leave
            yield from self.next_turn.leave()
        return False

    def start_turn(self) -> layer.CommandGenerator[None]:
        """Send `flow.request` upstream again on a new upstream stream. Its answer comes to this client stream."""
        self.turns.begin()
        self.flow.response = None
        self.incoming = Pipe()
        if not isinstance(self.answer, Spliced):
            self.answer = None
        self.server_state = self.state_wait_for_response_headers
        before = self.context.server
        if not (yield from self.make_server_connection()):
            return
        self.turns.reused = self.context.server is before
        for part in self.turns.request(for_upstream(self.flow)):
            yield SendHttp(part, self.context.server)

    # --- while the client waits -------------------------------------------------------------------------------

    def watch(self) -> None:
        """Also handle timers and events of cancelled turns."""
        self._handle_event = self._handle_event_or_wakeup

    def _handle_event_or_wakeup(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Wakeup):
            yield from self._handle_wakeup(event.command)
        elif not self.turns.is_stale(event):
            yield from self._handle_through_pipe(event) if self.incoming else super()._handle_event(event)

    def _handle_through_pipe(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Handle an event after the pipe has converted the bytes of an answer."""
        data = b""
        try:
            if isinstance(event, http_events.ResponseData):
                data = self.incoming.feed(event.data)
            elif isinstance(event, http_events.ResponseEndOfMessage):
                data = self.incoming.finish()
        except BodyError as e:
            self.incoming = Pipe()  # the rest of the answer is not converted
            yield from self.early_end.unreadable(e.error_type, str(e))
            return
        if data:
            yield from super()._handle_event(http_events.ResponseData(self.turns.id, data))
        if not isinstance(event, http_events.ResponseData):
            yield from super()._handle_event(event)

    def _handle_wakeup(self, command: commands.RequestWakeup) -> layer.CommandGenerator[None]:
        if self.client_state == self.state_errored:
            return
        if command is self.attempts.timeout:
            yield from self.attempts.stop_reading()
        elif command is self.next_turn.timer:
            yield from self.next_turn.start()
        elif command is self.keep_alives.timer:
            yield from self.keep_alives.interval_over()

    # --- the end ----------------------------------------------------------------------------------------------

    def flow_done(self) -> layer.CommandGenerator[None]:
        self.answer_begun = True
        if self._is_lost:
            yield from self.early_end.break_off(NOT_RECORDED)
            return
        yield from self.client.maybe_data(self.held)
        yield from self.client.finish()
        yield from self.turns.drop()
        yield from upgrade.switch_protocols(self) if upgrade.is_taken(self) else super().flow_done()

    def handle_protocol_error(
        self, event: http_events.RequestProtocolError | http_events.ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        state = self.state
        if isinstance(state, Foreign):
            yield from super().handle_protocol_error(event)
            return
        if isinstance(event, http_events.RequestProtocolError):
            # The upstream stream has the id of the current turn, not the client's.
            event = http_events.RequestProtocolError(self.turns.id, event.message, event.code)
            yield from self.turns.drop()
            yield from super().handle_protocol_error(event)
        elif self.server_state == self.next_turn.state_leave:
            yield from self.next_turn.state_leave(event)
        elif isinstance(state, Served) and self.attempts.repeats(state, event):
            yield from self.attempts.repeat()
        else:
            yield from self._upstream_failed(state, event)

    def _upstream_failed(
        self, state: Served | Refused, event: http_events.ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        """End the flow after the upstream could not be reached or broke off."""
        exchange = state.exchange if isinstance(state, Bridged) else None
        if self.client_state == self.state_errored or self.server_state == self.state_done:
            yield from self._forward_error(event)
            return
        if self.held:  # the body is complete, so nothing is missing
            yield from self.send_response(already_streamed=True)
            return
        if isinstance(state, Bridged):
            state.cut_by = "upstream"
        if self.answer_begun and (exchange is None or exchange.ended or not self.can_append):
            yield from self._forward_error(event)
            return
        yield from self.early_end.run_error_hook(event.message)
        if not (yield from self.check_killed(False)):
            yield from self.early_end.refuse(Refusal(502, "the upstream could not be reached or broke off"))

    def _forward_error(self, event: http_events.ResponseProtocolError) -> layer.CommandGenerator[None]:
        yield from self.turns.drop()
        yield from super().handle_protocol_error(
            http_events.ResponseProtocolError(self.stream_id, event.message, event.code)
        )

    @property
    def can_append(self) -> bool:
        return self.answer is not None and self.answer.can_append

    def ignore_events(self) -> None:
        self.client_state = self.server_state = self.state_errored
