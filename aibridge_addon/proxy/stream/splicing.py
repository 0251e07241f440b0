"""One client answer that spans several upstream turns, with injected tools run in between.

    turn's body ─▶ state_splice_response_body ─▶ visible bytes to the client
    turn's end  ─▶ aibridge_turn hook, again and again while tools run, with keep-alives in between
                    ├─▶ start_turn: the next one
                    └─▶ the answer's end, held until its rows are committed

A blocking answer goes the same way, but for the bytes: it is buffered, and sent when the last turn has ended.
"""

from __future__ import annotations

from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.dialects.base import AnswerError
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.proxy.stream.stream import AibridgeTurnHook, TurnIds
from aibridge_addon.proxy.stream.translating import TranslatingStream


class SplicingStream(TranslatingStream):
    def __init__(self, ctx: context.Context, stream_id: int, parent: TurnIds) -> None:
        super().__init__(ctx, stream_id, parent)
        self.silent = True
        """Nothing has been sent to the client since the last look."""
        self.ending_sent = False

    @property
    def spliced(self) -> Exchange | None:
        """The exchange, if tools are injected into it."""
        exchange = self.state.exchange if self.state is not None else None
        return exchange if exchange is not None and exchange.loop is not None else None

    # --- answers ----------------------------------------------------------------------------------------------

    def start_response_stream(self) -> layer.CommandGenerator[None]:
        if self.spliced is None:
            yield from super().start_response_stream()
            return
        if not self.answer_begun:
            yield from super().start_response_stream()
            # From here on the client waits for bytes: wake-ups and its going away have to be seen at any time.
            self._handle_event = self._handle_event_or_wakeup
            yield from self._keep_awake()
        self.server_state = self.state_splice_response_body

    def state_splice_response_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        exchange = self.spliced
        assert exchange is not None
        if isinstance(event, http_events.ResponseData):
            yield from self._show(exchange.splice(event.data))
            if exchange.unreadable:
                yield from self._undecodable(exchange.unreadable)
            elif exchange.ended and not self.ending_sent:
                yield from self._end_answer(exchange)
        elif isinstance(event, http_events.ResponseEndOfMessage):
            yield from self._show(exchange.splice_ended())
            if exchange.ended and not self.ending_sent and not (yield from self._end_answer(exchange)):
                return
            yield from self.send_response(already_streamed=True)

    @property
    def answer_limit(self) -> int:
        if self.spliced is None or self.state is None:
            return super().answer_limit
        return self.state.bridge.settings.limits.decoded_body

    def outgrown(self) -> layer.CommandGenerator[None]:
        exchange = self.spliced
        if exchange is None:
            yield from super().outgrown()
            return
        # Passed on as it is, it might show a call that is not the client's.
        message = f"the upstream's answer is larger than {self.answer_limit} bytes"
        exchange.end("answer_too_large", message)
        yield from self._ends_here(message)
        yield from self.cancel_upstream(message)
        yield from (self.break_off(message) if self.answer_begun else self.respond(502, message))

    def _show(self, data: bytes) -> layer.CommandGenerator[None]:
        if data and self.state is not None and self.state.usage_filter is not None:
            data = self.state.usage_filter.feed(data)
        if data:
            self.silent = False
            yield self._to_client(data)

    def _end_answer(self, exchange: Exchange) -> layer.CommandGenerator[bool]:
        """Send the held end of the answer, when its rows are committed."""
        self.ending_sent = True
        if not (yield from self.committed()):
            return False
        yield from self._show(exchange.ending())
        return True

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        exchange = self.spliced
        ours = self.state is not None and self.state.refused
        if exchange is None or ours or (exchange.ended and already_streamed) or self.flow.response is None:
            yield from super().send_response(already_streamed)
            return
        if self.answer_begun and not already_streamed:
            # A later turn was answered with an error, which has been buffered: the client's headers are long sent.
            yield from self._failed_turn()
            return
        self.handle_event = self._handle_event_watchfully  # type: ignore[method-assign]
        if not (yield from self._run_turn()):
            return
        if self.state is not None and self.state.another_turn:
            self.state.another_turn = False
            yield from self.start_turn()
        elif already_streamed and not self.ending_sent:
            if (yield from self._end_answer(exchange)):
                yield from super().send_response(already_streamed)
        else:
            yield from super().send_response(already_streamed)

    def _run_turn(self) -> layer.CommandGenerator[bool]:
        """Let the addon deal with the turn that has ended; False: the client has gone.

        The hook also lets an HTTP/1 connection forget the answer that has just ended.
        """
        while True:
            yield AibridgeTurnHook(self.flow)
            if (yield from self.check_killed(True)):
                return False
            if self.state is None or not self.state.tools_running:
                return True
            yield from self.keep_client_waiting()

    def _can_append(self) -> bool:
        # What has been shown of a spliced stream are whole events, whatever the turn under way is answered with.
        return super()._can_append() or (self.spliced is not None and self.answer_begun)

    def _failed_turn(self) -> layer.CommandGenerator[None]:
        exchange = self.spliced
        assert exchange is not None
        exchange.take_error((self.flow.response and self.flow.response.raw_content) or b"")
        error = exchange.error or AnswerError("", "")
        message = error.message or "the upstream answered with an error"
        yield from self._ends_here(message)
        yield from self.break_off(message, error.told)

    # --- waiting ----------------------------------------------------------------------------------------------

    def woken(self, command: commands.RequestWakeup) -> layer.CommandGenerator[None]:
        if command is self.dropping:
            yield from super().woken(command)
        else:
            yield from self._woken()

    def keep_client_waiting(self) -> layer.CommandGenerator[None]:
        if self.answer_begun and self.spliced is not None and self.spliced.loop is not None:
            yield self._to_client(self.spliced.loop.splice.keepalive())

    def _keep_awake(self) -> layer.CommandGenerator[None]:
        if self.state is not None:
            yield commands.RequestWakeup(self.state.bridge.settings.mcp.keepalive_interval)

    def _woken(self) -> layer.CommandGenerator[None]:
        """While nothing visible comes from upstream, the client is told that somebody is there."""
        exchange = self.spliced
        if exchange is None or exchange.loop is None or exchange.ended or self.client_state == self.state_errored:
            return
        if self.silent:
            yield self._to_client(exchange.loop.splice.keepalive())
        self.silent = True
        yield from self._keep_awake()
