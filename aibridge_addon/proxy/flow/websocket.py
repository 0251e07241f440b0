"""WebSockets of bridged routes: which are refused, and what is read of the others while they pass, untouched.

mitmproxy awaits the hook of each message before it passes it on, so an answer's last message waits for its rows there.
An idle socket is not under way: a stop waits for answers, each from its request to its end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from mitmproxy import ctx, http
from mitmproxy.websocket import WebSocketMessage

from aibridge_addon.bridge import Bridge
from aibridge_addon.dialects.base import RequestReading
from aibridge_addon.dialects.responses.reader import error_message
from aibridge_addon.interception import clients
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.responses_socket import ResponsesSocket
from aibridge_addon.interception.routing import Route
from aibridge_addon.proxy.flow.admission import admit
from aibridge_addon.proxy.flow.request import exchange_for
from aibridge_addon.proxy.flow.state import Head, Passthrough, Refusal, error_response, state_of

SOCKET = "aibridge_socket"
"""In `flow.metadata`: the socket that interceptions are read from."""

Mode = Literal["record", "upgrade_required", "auto"]

REFUSED: dict[tuple[Mode, bool], bool] = {
    ("record", False): False,
    ("record", True): False,
    ("upgrade_required", False): True,
    ("upgrade_required", True): True,
    ("auto", False): False,
    ("auto", True): True,  # nothing is injected into a WebSocket: over HTTP the client gets its tools
}
"""Whether the upgrade is refused, by mode and by whether tools would be injected."""


def is_upgrade(request: http.Request) -> bool:
    """Whether a request asks for a WebSocket (RFC 6455, section 4.1)."""
    return (
        "upgrade" in request.headers
        and request.method == "GET"
        and "websocket" in (protocol.strip().lower() for protocol in request.headers["upgrade"].split(","))
    )


def is_refused(route: Route, bridge: Bridge) -> bool:
    """Whether this request asks for a WebSocket that the client is to do without."""
    if route.websocket is None:
        return False
    injects = bridge.servers is not None and route.provider.inject_tools
    return REFUSED[bridge.settings.websockets, injects]


def upgrade_required(route: Route) -> http.Response:
    """426: Codex and Copilot ask over HTTP at once; any other status costs them several attempts, or all."""
    message = "WebSockets are not served here: use HTTP"
    return error_response(route.errors, 426, message, {"upgrade": "HTTP/1.1", "connection": "upgrade"})


class BridgedSocket:
    """The interceptions of one WebSocket."""

    def __init__(self, head: Head) -> None:
        self.head = head
        """What was decided about the upgrade. Its bridge is the one that the next interception begins with."""
        self.reader = ResponsesSocket(self._begin, head.bridge.settings.limits)
        self._bridges: dict[str, tuple[Bridge, Callable[[], None]]] = {}

    def _begin(self, reading: RequestReading, has_tools: bool) -> Exchange:
        head = self.head
        client = clients.program(head.headers)
        speaker = clients.speaker(client, head.headers, has_tools=has_tools)
        exchange = exchange_for(head, reading, client, speaker)
        cut_off = "the bridge was shut down before the answer had ended"
        left = head.bridge.in_flight.enter(lambda: exchange.end("shutdown", cut_off))
        self._bridges[exchange.id] = head.bridge, left
        return exchange

    def bridge_of(self, exchange: Exchange) -> Bridge:
        """The bridge that an interception began with: after a reload, the next one has another."""
        return self._bridges[exchange.id][0]

    def left(self, exchange: Exchange) -> None:
        """The interception has ended, and its last record was emitted."""
        self._bridges.pop(exchange.id)[1]()


def opened(flow: http.HTTPFlow) -> None:
    """The upstream has agreed to a WebSocket."""
    state = state_of(flow)
    if isinstance(state, Passthrough) and state.head.route.websocket is not None:
        # The request was passthrough; what follows are requests in the dialect.
        route = replace(state.head.route, dialect=state.head.route.websocket)
        flow.metadata[SOCKET] = BridgedSocket(replace(state.head, route=route))


def message_came(flow: http.HTTPFlow, bridge: Bridge | None) -> Awaitable[None] | None:
    """Read a message; what is returned has to be waited for before it is passed on. `bridge`: the one of now."""
    socket = flow.metadata.get(SOCKET)
    if not isinstance(socket, BridgedSocket) or flow.websocket is None:
        return None
    message = flow.websocket.messages[-1]
    if message.injected or message.dropped or not message.is_text:
        return None
    if not message.from_client:
        exchange = socket.reader.from_server(message.content)
        return None if exchange is None else _ended(socket, exchange, message)
    if bridge is not None and socket.reader.idle:
        # A reload has retired the bridge before, which waits for no idle socket.
        socket.head = replace(socket.head, bridge=bridge)
    exchange = socket.reader.from_client(message.content)
    if exchange is None:
        return None
    return admit(socket.bridge_of(exchange), exchange, partial(_answer, flow, socket, exchange, message))


def closed(flow: http.HTTPFlow) -> None:
    """The connection has ended, in good order or not."""
    socket = flow.metadata.get(SOCKET)
    if not isinstance(socket, BridgedSocket) or flow.websocket is None:
        return
    by = "client" if flow.websocket.closed_by_client else "upstream"
    code, reason = flow.websocket.close_code, flow.websocket.close_reason or ""
    for exchange in socket.reader.cut(f"{by}_disconnected", f"WebSocket closed with {code} {reason}".rstrip()):
        socket.left(exchange)


async def _ended(socket: BridgedSocket, exchange: Exchange, message: WebSocketMessage) -> None:
    """An answer's last message is held: wait for its rows."""
    bridge = socket.bridge_of(exchange)
    recording = bridge.settings.recording
    if recording.durable and not await bridge.committed() and recording.on_failure == "closed":
        message.content = error_message(503, "the record of this answer could not be written")
    socket.left(exchange)


def _answer(
    flow: http.HTTPFlow, socket: BridgedSocket, exchange: Exchange, message: WebSocketMessage, refusal: Refusal
) -> None:
    """Answer a refused request in place of the upstream."""
    exchange.end(refusal.error_type, refusal.reason or refusal.message)
    message.drop()
    socket.reader.withdraw(exchange)
    socket.left(exchange)
    ctx.master.commands.call("inject.websocket", flow, True, error_message(refusal.status, refusal.message), True)
