"""Our place in mitmproxy's HTTP layer: the one module that relies on its internals.

mitmproxy gives each request an `HttpStream`, a machine whose states (`client_state`, `server_state`) are methods that
take events and yield commands. Ours differs from it in that

- a request in origin form to a port that proxies is marked: it is meant for us, not for a third host;
- a body above the bridge's limit is refused while it arrives;
- a bridged answer is read in `state_tap_response_body`; the bytes of its terminal event are held until the addon's
  `aibridge_commit` hook has returned, that is until its rows are committed;
- a complete answer may be kept from the client, and upstream asked again (`aibridge_turn` hook): on a fresh stream id,
  over the same upstream connection;
- an upstream that cannot be reached, or breaks off, is told in the provider's own shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mitmproxy import flow as mitm_flow
from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import DropStream, HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http import _hooks as http_hooks

from aibridge_addon.dialects.base import NOTHING
from aibridge_addon.proxy.flow.state import (
    ORIGIN_FORM,
    RETRY_BODY_LIMIT,
    TUNNEL,
    FlowState,
    error_response,
    json_response,
    state_of,
)
from aibridge_addon.wire.codings import CodingError

NOT_RECORDED = "the record of this answer could not be written"


@dataclass
class AibridgeCommitHook(commands.StartHook):
    """The answer's terminal event has been read and is held: return when its rows are committed."""

    flow: http.HTTPFlow


@dataclass
class AibridgeTurnHook(commands.StartHook):
    """A complete answer has been kept from the client: decide whether upstream is asked again."""

    flow: http.HTTPFlow


class TurnIds(Protocol):
    """What a stream needs of the layer that it is in."""

    turn_ids: Iterator[int]
    streams: dict[int, HttpStream]


class BridgeHttpStream(HttpStream):
    def __init__(self, ctx: context.Context, stream_id: int, parent: TurnIds) -> None:
        super().__init__(ctx, stream_id)
        self.parent = parent
        self.state: FlowState | None = None
        self.upstream_id = stream_id
        """The stream id of the turn that is under way: upstream, each turn is a stream of its own."""
        self.answer_begun = False
        """The client has been sent the answer's headers."""
        self.held = b""
        """The end of a body, which waits for its rows."""
        self.unread: int | None = None
        """Bytes of the answer that are still to come, where it said how many there are."""

    # --- the request ------------------------------------------------------------------------------------------

    def state_wait_for_request_headers(self, event: http_events.RequestHeaders) -> layer.CommandGenerator[None]:
        if event.replay_flow is None:
            # mitmproxy fills in a missing host, after which the two forms of a request cannot be told apart. A flow
            # that is brought along is used as it is, so the mark is on it before the first hook.
            flow = http.HTTPFlow(self.context.client, self.context.server)
            is_proxy = self.mode is not HTTPMode.transparent and event.request.method != "CONNECT"
            if is_proxy and not event.request.host:
                flow.metadata[ORIGIN_FORM] = True
                self._offer_basic_authentication(event.request)
            event.replay_flow = flow
        yield from super().state_wait_for_request_headers(event)
        self.state = state_of(self.flow)
        if self.client_state == self.state_consume_request_body:
            yield from self.check_body_size(True)

    def _offer_basic_authentication(self, request: http.Request) -> None:
        """Clients of a gateway know no proxy: their user and password come as `Authorization: Basic`."""
        headers = request.headers
        basic = headers.get("authorization", "").lower().startswith("basic ")
        if self.context.options.proxyauth and basic and "proxy-authorization" not in headers:
            headers["proxy-authorization"] = headers.pop("authorization")

    def check_body_size(self, request: bool) -> layer.CommandGenerator[bool]:
        if (yield from super().check_body_size(request)):
            return True
        state = state_of(self.flow)
        if request and state is not None and state.request_limit and not state.refused:
            size = max(len(self.request_body_buf), _content_length(self.flow.request))
            if size > state.request_limit:
                message = f"the request body is larger than {state.request_limit} bytes"
                yield from self._ends_here(message)
                yield from self.respond(413, message)
                return True
        elif not request and state is not None and len(self.response_body_buf) > self.answer_limit:
            yield from self.outgrown()
        return False

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        connected = yield from super().make_server_connection()
        request = self.flow.request
        has_frames = self.context.server.alpn in (b"h2", b"h3")
        if connected and (request.is_http2 or request.is_http3) and not has_frames:
            # HTTP/1 has to be told where a body ends, or it takes the body for the next request.
            if "content-length" not in request.headers and request.raw_content is None:
                request.headers["transfer-encoding"] = "chunked"  # it is streamed
            elif "content-length" not in request.headers and request.raw_content:
                request.headers["content-length"] = str(len(request.raw_content))
        return connected

    def handle_connect_regular(self) -> layer.CommandGenerator[None]:
        error = None
        if self.flow.metadata.get(TUNNEL) and not self.flow.response:
            # Nobody looks into this tunnel, so it is opened at once: in some protocols the server speaks first.
            error = yield commands.OpenConnection(self.context.server)
        if error:
            body = b'{"error":{"type":"api_error","message":"the host could not be reached"}}'
            self.flow.response = json_response(502, body)
        yield from super().handle_connect_regular()  # type: ignore[no-untyped-call]

    # --- the answer -------------------------------------------------------------------------------------------

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        if request or state_of(self.flow) is None or not self.context.options.validate_inbound_headers:
            return (yield from super().check_invalid(request))
        assert self.flow.response is not None
        try:
            validate_headers(self.flow.response)
        except ValueError as e:
            yield commands.CloseConnection(self.flow.server_conn)
            code = http_events.ErrorCode.RESPONSE_VALIDATION_FAILED
            yield from self.handle_protocol_error(
                http_events.ResponseProtocolError(self.upstream_id, f"malformed answer: {e}", code)
            )
            return True
        return False

    def start_response_stream(self) -> layer.CommandGenerator[None]:
        yield from super().start_response_stream()
        self.answer_begun = True
        if self.state is not None and self.state.exchange is not None and self.flow.response is not None:
            length = _content_length(self.flow.response)
            self.unread = length if "content-length" in self.flow.response.headers else None
            changed = self.state.decoder is not None or self.state.usage_filter is not None
            unchanged = not changed and self.unread is None and self.upstream_id == self.stream_id
            self.server_state = self.state_tap_events if unchanged else self.state_tap_response_body

    def state_tap_events(self, event: events.Event) -> layer.CommandGenerator[None]:
        """`state_tap_response_body` for most streams, where all passes as it comes: hundreds of times for an answer."""
        if type(event) is not http_events.ResponseData:
            yield from self.state_tap_response_body(event)
            return
        assert self.state is not None and self.state.exchange is not None
        held = self.state.exchange.feed(event.data)
        if held is None:
            yield SendHttp(event, self.context.client)
        else:
            yield from self._hold(event.data, held)

    @property
    def answer_limit(self) -> int:
        """Bytes of an answer that are buffered."""
        return RETRY_BODY_LIMIT

    def outgrown(self) -> layer.CommandGenerator[None]:
        """The answer that is buffered is larger than that: it is no refusal, so it passes as it comes."""
        body = bytes(self.response_body_buf)
        self.response_body_buf.clear()
        if self.state is not None:
            self.state.usage_filter = self.state.unasked_body = None
        yield from self.start_response_stream()
        yield from self.server_state(http_events.ResponseData(self.upstream_id, body))

    def state_tap_response_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        state = self.state
        assert state is not None and state.exchange is not None
        if isinstance(event, http_events.ResponseData):
            data = event.data
            last = False
            if self.unread is not None:
                self.unread -= len(data)
                last = self.unread <= 0
            if state.decoder is not None:
                try:
                    data = b"".join(state.decoder.feed(data))
                except CodingError as e:
                    yield from self._undecodable(str(e))
                    return
            held = state.exchange.feed(data, last)
            if state.usage_filter is not None:
                data, held = state.usage_filter.feed(data), None if held is None else 0
            if held is None:
                if data:
                    yield self._to_client(data)
                return
            yield from self._hold(data, held)
        elif isinstance(event, http_events.ResponseTrailers):
            assert self.flow.response is not None
            self.flow.response.trailers = event.trailers
        elif isinstance(event, http_events.ResponseEndOfMessage):
            if state.usage_filter is not None and (rest := state.usage_filter.finish()):
                yield self._to_client(rest)
            if state.exchange.streaming and not state.exchange.ended:
                state.exchange.answer_ended()
                if not (yield from self.committed()):
                    return
            yield from self.send_response(already_streamed=True)

    def _hold(self, data: bytes, held: int) -> layer.CommandGenerator[None]:
        """Send `data` up to the offset `held`, where the answer's end begins; the rest when its rows are committed."""
        assert self.state is not None and self.state.exchange is not None
        if held:
            yield self._to_client(data[:held])
        if not self.state.exchange.streaming:
            self.held = data[held:]  # goes after the `response` hook, which waits for the rows
        elif (yield from self.committed()) and data:
            yield self._to_client(data[held:])

    def _undecodable(self, reason: str, error_type: str = "undecodable_answer") -> layer.CommandGenerator[None]:
        """The answer was to be decoded for the client, and cannot be."""
        assert self.state is not None and self.state.exchange is not None
        self.state.exchange.end(error_type, reason)
        yield from self._ends_here(f"the answer cannot be decoded: {reason}")
        yield from self.cancel_upstream(reason)
        yield from self.break_off("the upstream's answer cannot be decoded")

    def cancel_upstream(self, reason: str) -> layer.CommandGenerator[None]:
        """The rest of the upstream's answer is not wanted."""
        error = http_events.RequestProtocolError(self.upstream_id, reason, http_events.ErrorCode.CANCEL)
        yield SendHttp(error, self.context.server)

    def _to_client(self, data: bytes) -> SendHttp:
        return SendHttp(http_events.ResponseData(self.stream_id, data), self.context.client)

    def committed(self) -> layer.CommandGenerator[bool]:
        """Wait until the answer's rows are committed; False: the stream is over, nothing more may be sent."""
        yield AibridgeCommitHook(self.flow)
        if (yield from self.check_killed(True)):
            return False
        if self.state is not None and self.state.lost:
            yield from self._ends_here(NOT_RECORDED)
            yield from self.break_off(NOT_RECORDED)
            return False
        return True

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        state = self.state
        if self.flow.response is not None and not (self.flow.request.is_http2 or self.flow.request.is_http3):
            self.flow.response.trailers = None  # mitmproxy cannot send any over HTTP/1, and would break off
        if state is not None and state.unasked_body is not None and not already_streamed:
            # The hook also lets an HTTP/1 connection forget the answer that has just ended.
            yield AibridgeTurnHook(self.flow)
            if (yield from self.check_killed(True)):
                return
            if state.another_turn:
                state.another_turn = False
                yield from self.start_turn()
                return
        yield from super().send_response(already_streamed)

    def start_turn(self) -> layer.CommandGenerator[None]:
        """Send `flow.request` upstream once more, as a stream of its own; its answer comes to this one."""
        if self.upstream_id != self.stream_id:
            self.parent.streams.pop(self.upstream_id, None)
        self.upstream_id = next(self.parent.turn_ids)
        self.parent.streams[self.upstream_id] = self
        self.flow.response = None
        self.server_state = self.state_wait_for_response_headers
        if not (yield from self.make_server_connection()):
            return
        request = self.flow.request
        parts: Iterable[http_events.HttpEvent] = (
            http_events.RequestHeaders(self.upstream_id, request, not request.raw_content),
            *([http_events.RequestData(self.upstream_id, request.raw_content)] if request.raw_content else ()),
            http_events.RequestEndOfMessage(self.upstream_id),
        )
        for part in parts:
            yield SendHttp(part, self.context.server)

    # --- its end ----------------------------------------------------------------------------------------------

    def flow_done(self) -> layer.CommandGenerator[None]:
        if self.state is not None and self.state.lost:
            yield from self.break_off(NOT_RECORDED)
            return
        if self.held:
            yield self._to_client(self.held)
        yield from self._drop_turn()
        yield from super().flow_done()

    def _drop_turn(self) -> layer.CommandGenerator[None]:
        if self.upstream_id != self.stream_id:
            yield DropStream(self.upstream_id)

    def handle_protocol_error(
        self, event: http_events.RequestProtocolError | http_events.ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        state = getattr(self, "flow", None) and state_of(self.flow)
        if not state:
            yield from super().handle_protocol_error(event)
        elif isinstance(event, http_events.RequestProtocolError):
            # Upstream knows the turn that is under way, not the client's stream.
            event = http_events.RequestProtocolError(self.upstream_id, event.message, event.code)
            yield from self._drop_turn()
            yield from super().handle_protocol_error(event)
        elif self.client_state == self.state_errored or self.server_state == self.state_done:
            yield from self._pass_on(event)
        elif self.held:  # the body is whole: what breaks off now takes nothing with it
            yield from self.send_response(already_streamed=True)
        elif self.answer_begun:
            state.cut_by = "upstream"
            yield from self._upstream_broke_off(event)
        else:
            state.cut_by = "upstream"
            self.flow.error = mitm_flow.Error(event.message)
            yield http_hooks.HttpErrorHook(self.flow)
            if not (yield from self.check_killed(False)):
                yield from self.respond(502, "the upstream could not be reached or broke off")

    def _upstream_broke_off(self, event: http_events.ResponseProtocolError) -> layer.CommandGenerator[None]:
        exchange = self.state.exchange if self.state is not None else None
        if exchange is None or exchange.ended or not self._can_append():
            yield from self._pass_on(event)
            return
        self.flow.error = mitm_flow.Error(event.message)
        yield http_hooks.HttpErrorHook(self.flow)
        if not (yield from self.check_killed(False)):
            yield from self.break_off("the upstream broke off")

    def _pass_on(self, event: http_events.ResponseProtocolError) -> layer.CommandGenerator[None]:
        yield from self._drop_turn()
        yield from super().handle_protocol_error(
            http_events.ResponseProtocolError(self.stream_id, event.message, event.code)
        )

    def _can_append(self) -> bool:
        """Whether an event of our own can end the stream: it stands between two events, and has no fixed length."""
        exchange = self.state.exchange if self.state is not None else None
        tap = exchange.tap if exchange is not None else None
        return tap is not None and self.unread is None and tap.at_event_boundary

    def break_off(self, message: str, told: Mapping[str, Any] = NOTHING) -> layer.CommandGenerator[None]:
        """End an answer that has begun and cannot go on: by the dialect's error event, else by cutting it."""
        assert self.state is not None
        self.flow.live = False
        if self._can_append():
            yield self._to_client(self.state.route.errors.error_event(message, told))
            end: http_events.HttpEvent = http_events.ResponseEndOfMessage(self.stream_id)
        else:
            end = http_events.ResponseProtocolError(self.stream_id, message, http_events.ErrorCode.KILL)
        self.client_state = self.server_state = self.state_errored
        yield from self._drop_turn()
        yield DropStream(self.stream_id)
        yield SendHttp(end, self.context.client)

    def _ends_here(self, message: str) -> layer.CommandGenerator[None]:
        """Tell the addon that no other hook will come for this flow."""
        self.flow.error = mitm_flow.Error(message)
        yield http_hooks.HttpErrorHook(self.flow)

    def respond(self, status: int, message: str) -> layer.CommandGenerator[None]:
        """Answer in the provider's shape, in place of an upstream; the rest of the request is not read."""
        state = state_of(self.flow)
        assert state is not None
        state.refused = True
        yield from self.answer(error_response(state.route.errors, status, message))

    def answer(self, response: http.Response) -> layer.CommandGenerator[None]:
        """Send a whole answer of our own, whatever state the request is in."""
        self.flow.response = response
        self.flow.live = False
        self.request_body_buf.clear()
        self.client_state = self.server_state = self.state_errored
        yield SendHttp(http_events.ResponseHeaders(self.stream_id, response, False), self.context.client)
        yield self._to_client(response.raw_content or b"")
        yield from self._drop_turn()
        yield DropStream(self.stream_id)
        yield SendHttp(http_events.ResponseEndOfMessage(self.stream_id), self.context.client)


def _content_length(message: http.Message) -> int:
    value = message.headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0
