"""Relay a connection after 101 Switching Protocols.

    101 ─┬─ a WebSocket that is recorded ─▶ BoundedWebsocketLayer   mitmproxy's layer; messages have limits
         └─ everything else              ─▶ TCPLayer                bytes as they are, which nothing reads

mitmproxy would decompress every message of every WebSocket. 260 KB of permessage-deflate become 1.4 GB.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Iterable
from typing import Protocol, cast

from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import tcp, websocket
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.websocket import WebSocketMessage
from wsproto.connection import ConnectionState
from wsproto.events import Ping, TextMessage
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from aibridge_addon.interception.buffers import Share
from aibridge_addon.proxy.flow import websocket as recorded
from aibridge_addon.proxy.flow.bridged_socket import SOCKET, BridgedSocket
from aibridge_addon.proxy.flow.outbox import OutboxFilled
from aibridge_addon.proxy.flow.state import HOOK, Passthrough, state_of

FRAME_COST = 128
"""Bytes that a frame counts in addition to its content. Without it, a message could have any number of empty frames."""
HOOKS = (websocket.WebsocketStartHook, websocket.WebsocketMessageHook, websocket.WebsocketEndHook)
DRAIN_TIMEOUT = 5.0
"""Seconds in which a peer whose message was too large can read the close frame."""
MAX_DRAINED = 64 * 1024 * 1024
"""Bytes of it that are read and dropped meanwhile."""


class UpgradableStream(Protocol):
    """The part of `BridgeHttpStream` that a change of protocols uses."""

    flow: http.HTTPFlow
    context: context.Context
    stream_id: int
    child_layer: layer.Layer | None

    def passthrough(self, event: events.Event) -> layer.CommandGenerator[None]: ...


def is_taken(stream: UpgradableStream) -> bool:
    """Return whether `switch_protocols` handles the end of this flow. Otherwise mitmproxy does."""
    flow = stream.flow
    switches = flow.response is not None and flow.response.status_code == 101
    return switches and (flow.websocket is not None or bool(stream.context.options.rawtcp))


def switch_protocols(stream: UpgradableStream) -> layer.CommandGenerator[None]:
    """Do what `HttpStream.flow_done` does for a 101, with layers of our own."""
    stream.child_layer = _layer(stream)
    stream._handle_event = stream.passthrough  # type: ignore[attr-defined]
    yield from stream.child_layer.handle_event(events.Start())
    yield SendHttp(http_events.ResponseEndOfMessage(stream.stream_id), stream.context.client)


def _layer(stream: UpgradableStream) -> layer.Layer:
    flow, state = stream.flow, state_of(stream.flow)
    if flow.websocket is not None and isinstance(state, Passthrough) and state.head.route.websocket is not None:
        bridge = state.head.bridge
        limit = bridge.settings.limits.websocket_message
        return BoundedWebsocketLayer(stream.context, flow, limit, bridge.buffers.share)
    flow.websocket = None
    flow.live = False
    return tcp.TCPLayer(stream.context, ignore=True)


class BoundedWebsocketLayer(websocket.WebsocketLayer):
    """Closes a WebSocket with 1009 if a message is larger than `limit` bytes, decompressed."""

    def __init__(self, ctx: context.Context, flow: http.HTTPFlow, limit: int, share: Callable[[], Share]) -> None:
        super().__init__(ctx, flow)
        self._limit = limit
        self._shares = (share(), share())
        # A crash of this layer, or of one around it, brings no further event.
        weakref.finalize(self, _end, self._shares).atexit = False
        self._sender: Connection | None = None
        """The peer whose message was too large, and that still sends."""
        self._drained = 0

    def start(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from self._heard(super().start(event))
        for connection, share in zip((self.client_ws, self.server_ws), self._shares, strict=True):
            decoder = connection._proto._frame_decoder
            decoder.extensions = _bounded(decoder.extensions, Bound(self._limit, share))
            connection.frame_buf = _Frames(connection.frame_buf)

    _handle_event = start

    def relay_messages(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, OutboxFilled):
            yield from self._empty_outbox()
            return
        for command in self._heard(super().relay_messages(event)):
            if isinstance(command, commands.CloseConnection) and self._still_sends(command.connection):
                self._sender = command.connection
            else:
                yield command
        for connection in (self.client_ws, self.server_ws):
            if type(connection.frame_buf) is not _Frames:
                connection.frame_buf = _Frames(connection.frame_buf)
        if self._handle_event == self.done:
            _end(self._shares)
            if self._sender is not None:
                self._handle_event = self.drain  # type: ignore[method-assign]
                yield commands.RequestWakeup(DRAIN_TIMEOUT)

    def _heard(self, relayed: layer.CommandGenerator[None]) -> layer.CommandGenerator[None]:
        """Yield commands, and notice a hook that another addon has kept from the bridge."""
        for command in relayed:
            if not isinstance(command, HOOKS):
                yield command
                continue
            self.flow.metadata.pop(HOOK, None)
            yield command
            if self.flow.metadata.get(HOOK) != command.name:
                recorded.missed(self.flow, command.name)
            yield from self._empty_outbox()

    def _empty_outbox(self) -> layer.CommandGenerator[None]:
        """Send the messages of the bridge itself. A side that has been closed gets none."""
        socket = self.flow.metadata.get(SOCKET)
        for outgoing in socket.outbox.take() if isinstance(socket, BridgedSocket) else ():
            receiver = self.client_ws if outgoing.to_client else self.server_ws
            if receiver.state is not ConnectionState.OPEN:
                continue
            if outgoing.content is None:
                yield receiver.send2(Ping())
                continue
            yield receiver.send2(TextMessage(outgoing.content.decode("utf-8", "replace")))
            if self.flow.websocket is not None:  # for the interactive tools
                shown = WebSocketMessage(Opcode.TEXT, not outgoing.to_client, outgoing.content, injected=True)
                self.flow.websocket.messages.append(shown)

    def _still_sends(self, connection: Connection) -> bool:
        """Return whether a peer is in the middle of a message that is too large."""
        assert self.flow.websocket is not None
        by_client = connection == self.context.client
        refused = self.flow.websocket.close_code in (CloseReason.MESSAGE_TOO_BIG, CloseReason.TRY_AGAIN_LATER)
        return refused and by_client is self.flow.websocket.closed_by_client and bool(connection.state)

    def done(self, event: events.Event) -> layer.CommandGenerator[None]:
        if not isinstance(event, OutboxFilled):
            yield from super().done(event)

    def drain(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Read and drop what a peer still sends. Closed at once, it would often not read why."""
        if isinstance(event, events.DataReceived) and event.connection == self._sender:
            self._drained += len(event.data)
        is_over = isinstance(event, events.Wakeup) or (
            isinstance(event, events.ConnectionClosed) and event.connection == self._sender
        )
        if self._sender is not None and (is_over or self._drained > MAX_DRAINED):
            yield commands.CloseConnection(self._sender)
            self._sender = None


def _end(shares: Iterable[Share]) -> None:
    for share in shares:
        share.end()


class _Frames(list[bytes]):
    """The frames of a message that is not complete. A frame that arrives in pieces grows in linear time."""

    def __init__(self, frames: Iterable[bytes]) -> None:
        super().__init__(cast(Iterable[bytes], map(bytearray, frames)))

    def append(self, frame: bytes) -> None:
        super().append(cast(bytes, bytearray(frame)))


class Bound:
    """The size of the message that a peer sends."""

    def __init__(self, limit: int, share: Share) -> None:
        self._limit = limit
        self._share = share
        self._size = 0

    @property
    def left(self) -> int:
        return self._limit - self._size

    def add(self, size: int) -> CloseReason | None:
        """Count bytes. Returns why the connection has to be closed, if it has to."""
        self._size += size
        if self._size > self._limit:
            return CloseReason.MESSAGE_TOO_BIG
        return None if self._share.add(size) else CloseReason.TRY_AGAIN_LATER

    def reset(self) -> None:
        self._share.give_back(self._size)
        self._size = 0


class BoundedDeflate(PerMessageDeflate):
    """Decompresses only as much as a message may have."""

    def __init__(self, negotiated: PerMessageDeflate, bound: Bound) -> None:
        super().__init__()
        vars(self).update(vars(negotiated))
        self._bound = bound

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        if not self._inbound_compressed or not self._inbound_is_compressible or self._decompressor is None:
            return data
        try:
            piece = self._decompressor.decompress(data, self._bound.left + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        return CloseReason.MESSAGE_TOO_BIG if self._decompressor.unconsumed_tail else piece


class MessageLimit(Extension):
    """Counts the bytes of each message, after they were decompressed."""

    name = "aibridge-limit"

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._is_data = False

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        self._is_data = not opcode.iscontrol()
        closed = self._bound.add(FRAME_COST) if self._is_data else None
        return closed or RsvBits(False, False, False)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        return (self._bound.add(len(data)) if self._is_data else None) or data

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:
        if fin and self._is_data:
            self._bound.reset()
        return None


def _bounded(negotiated: Iterable[Extension], bound: Bound) -> list[Extension]:
    extensions = [BoundedDeflate(e, bound) if isinstance(e, PerMessageDeflate) else e for e in negotiated]
    return [*extensions, MessageLimit(bound)]
