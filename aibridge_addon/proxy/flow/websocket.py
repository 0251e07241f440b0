"""Refuse WebSockets of bridged routes, or read their messages while mitmproxy relays them unchanged.

mitmproxy awaits the hook of each message before it sends the message. In that hook, the last message of an answer
waits for its rows. A stop waits for answers, not for idle sockets.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from mitmproxy import ctx, http
from mitmproxy.websocket import WebSocketMessage

from aibridge_addon.bridge import Bridge
from aibridge_addon.credentials.tokens import Presented, RefusedToken
from aibridge_addon.dialects.base import RequestReading
from aibridge_addon.dialects.limits import limits_in_event
from aibridge_addon.dialects.responses.reader import error_message
from aibridge_addon.interception import clients
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.responses_socket import ResponsesSocket
from aibridge_addon.interception.routing import MAX_HOST, Route
from aibridge_addon.proxy.connection.handler import INACTIVE, is_inactive
from aibridge_addon.proxy.flow.admission import admit, admit_handshake
from aibridge_addon.proxy.flow.bridge_token import refusal_of
from aibridge_addon.proxy.flow.plan_limits import limits_said
from aibridge_addon.proxy.flow.request import exchange_for, upstream_host
from aibridge_addon.proxy.flow.state import (
    HOOK,
    Bridged,
    Dispatch,
    Head,
    Passthrough,
    Refusal,
    Served,
    Uncopied,
    describe,
    emit_refusal,
    state_of,
)
from aibridge_addon.proxy.flow.traces import continue_trace
from aibridge_addon.records import Headers, utc_now

logger = logging.getLogger(__name__)

INTERNAL_ERROR = "an internal error of the bridge, which its log describes"
SOCKET = "aibridge_socket"
"""Key in `flow.metadata`: the `BridgedSocket` of this flow."""

Began = Callable[[Exchange, Bridge], None]
"""Takes an interception of a WebSocket, and the bridge with which it began."""
SWITCHING = 101
"""Status of an answer after which another protocol follows."""
Mode = Literal["record", "upgrade_required", "auto"]

REFUSED: Mapping[tuple[Mode, bool], bool] = MappingProxyType(
    {
        ("record", False): False,
        ("record", True): False,
        ("upgrade_required", False): True,
        ("upgrade_required", True): True,
        ("auto", False): False,
        ("auto", True): True,  # tools are injected into HTTP requests only
    }
)
"""Whether the upgrade is refused, by mode and by whether tools would be injected."""


def is_upgrade(request: http.Request) -> bool:
    """Return whether a request is a WebSocket handshake (RFC 6455, section 4.1)."""
    return (
        "upgrade" in request.headers
        and request.method == "GET"
        and "websocket" in (protocol.strip().lower() for protocol in request.headers["upgrade"].split(","))
    )


def refused_handshake(route: Route, bridge: Bridge, host: str, headers: Headers, chosen: Dispatch) -> Refusal | None:
    """Return why a handshake is refused; None if it is not, or if the request is none of a recorded WebSocket.

    An admitted one has a ticket of the circuit breaker in `chosen`.
    """
    if route.websocket is None:
        return None
    injects = bridge.servers is not None and route.provider.inject_tools
    if REFUSED[bridge.settings.websockets, injects] or not bridge.reads_websockets:
        return UPGRADE_REQUIRED
    if headers.get(b"sec-websocket-version", b"").strip() != VERSION:
        return WRONG_VERSION  # mitmproxy would relay its messages unread
    admitted = admit_handshake(bridge, route, host[:MAX_HOST].lower())
    if isinstance(admitted, Refusal):
        return admitted
    chosen.ticket = admitted
    return None


UPGRADE_REQUIRED = Refusal(
    426, "WebSockets are not served here: use HTTP", headers={"upgrade": "HTTP/1.1", "connection": "upgrade"}
)
"""Codex and Copilot then use HTTP at once; after other statuses they retry first, or give up."""
VERSION = b"13"
WRONG_VERSION = Refusal(
    426, "the version of the WebSocket protocol has to be 13", headers={"sec-websocket-version": VERSION.decode()}
)
"""RFC 6455, section 4.4."""


def drop_upgrade(request: http.Request) -> None:
    """Remove the wish for another protocol, which a server may ignore (RFC 9110, section 7.8).

    In another protocol the bridge would read nothing.
    """
    if "upgrade" not in request.headers:
        return
    del request.headers["upgrade"]
    request.headers.pop("http2-settings", None)
    named = [token.strip() for token in request.headers.get("connection", "").split(",")]
    kept = ", ".join(token for token in named if token.lower() not in ("", "upgrade", "http2-settings"))
    if kept:
        request.headers["connection"] = kept
    else:
        request.headers.pop("connection", None)


def switch_error(flow: http.HTTPFlow, state: Served, answer: http.Response) -> str | None:
    """Return why an upstream may not switch to another protocol. None: it may, or does not.

    On a recorded route, and with a central key, the one protocol is the WebSocket whose messages are read.
    """
    if answer.status_code != SWITCHING:
        return None
    route = state.head.route
    if isinstance(state, Bridged) or "upgrade" not in flow.request.headers:
        return "the upstream switched to another protocol, which the request did not ask for"
    is_socket = route.websocket is not None and answer.headers.get("upgrade", "").lower() == "websocket"
    if not is_socket and (route.websocket is not None or state.head.dispatch.attempts.pool is not None):
        return "the upstream switched to another protocol, which the bridge does not read"
    return None


class BridgedSocket(Uncopied):
    """The interceptions of one WebSocket."""

    def __init__(self, head: Head, host: str, path: str, began: Began | None = None) -> None:
        self.head = head
        """The head of the upgrade request. Its bridge is used for the next interception."""
        self._host = host
        self._path = path
        self._began = began
        self.reader = ResponsesSocket(self._begin, head.bridge.settings.limits, self._limits_came)
        self._bridges: dict[str, tuple[Bridge, Callable[[], None], Exchange]] = {}

    def _begin(self, reading: RequestReading, has_tools: bool) -> Exchange:
        head = self.head
        sender = clients.sender(head.headers, reading, has_tools=has_tools)
        share = head.bridge.buffers.share()
        exchange = exchange_for(head, reading, sender, self._host, share=share)
        continue_trace(head, exchange, utc_now(), self._path)
        cut_off = "the bridge was shut down before the answer had ended"
        left = head.bridge.in_flight.enter(lambda: exchange.end("shutdown", cut_off), partial(describe, head, exchange))
        self._bridges[exchange.id] = head.bridge, share.ending(left), exchange
        if self._began is not None:
            self._began(exchange, head.bridge)
        return exchange

    def _limits_came(self, event: Any) -> None:
        limits_said(self.head, limits_in_event(event, utc_now()))

    def bridge_of(self, exchange: Exchange) -> Bridge:
        """Return the bridge with which an interception began. After a reload, the next one has another."""
        return self._bridges[exchange.id][0]

    def left(self, exchange: Exchange) -> None:
        """Report that an interception has ended and its last record was emitted."""
        if exchange.id in self._bridges:
            self._bridges.pop(exchange.id)[1]()

    def fail(self) -> None:
        """End all interceptions after an exception, and read the next messages anew."""
        for _, left, exchange in self._bridges.values():
            exchange.fail("internal_error", INTERNAL_ERROR)
            left()
        self._bridges.clear()
        self.reader = ResponsesSocket(self._begin, self.head.bridge.settings.limits, self._limits_came)


def opened(flow: http.HTTPFlow, began: Began | None = None) -> None:
    """Start reading a WebSocket that the upstream has accepted.

    `began` is called for each interception before its first record.
    """
    state = state_of(flow)
    if isinstance(state, Passthrough) and state.head.route.websocket is not None:
        # The upgrade request is a passthrough; the messages are requests in the dialect.
        route = replace(state.head.route, dialect=state.head.route.websocket)
        flow.metadata[SOCKET] = BridgedSocket(
            replace(state.head, route=route), upstream_host(flow, state.head), flow.request.path, began
        )


def message_came(flow: http.HTTPFlow, bridge: Bridge | None) -> Awaitable[None] | None:
    """Read a message. The returned awaitable has to be awaited before the message is sent.

    `bridge`: the addon's current one.
    """
    socket = flow.metadata.get(SOCKET)
    if not isinstance(socket, BridgedSocket) or flow.websocket is None:
        return None
    message = flow.websocket.messages[-1]
    if message.injected or message.dropped:
        return None  # a binary message is read as text: servers may do so, too
    if bridge is not None and socket.reader.idle:
        # A reload may have retired the socket's bridge, which does not wait for idle sockets.
        socket.head = replace(socket.head, bridge=bridge)
    if message.from_client and socket.head.bridge.refusing:
        message.drop()
        _inject(flow, error_message(503, "the bridge is being stopped"))
        return None
    if not message.from_client:
        exchange = socket.reader.from_server(message.content)
        return None if exchange is None else _ended(socket, exchange, message)
    exchange = socket.reader.from_client(message.content)
    if exchange is None:
        return None
    bridge, refuse = socket.bridge_of(exchange), partial(_answer, flow, socket, exchange, message)
    token = socket.head.actor.token
    if token is not None:
        return _admit_owner(bridge, token, exchange, message.content, refuse)
    return admit(bridge, exchange, message.content, refuse)


async def _admit_owner(
    bridge: Bridge, token: Presented, exchange: Exchange, content: bytes, refuse: Callable[[Refusal], object]
) -> None:
    """Admit a request if its socket's token still counts. It may have been revoked since the handshake."""
    verdict = await bridge.tokens.check(token)
    if isinstance(verdict, RefusedToken):
        refuse(refusal_of(verdict, proxy=False))
    elif (waiting := admit(bridge, exchange, content, refuse)) is not None:
        await waiting


def guarded(hook: Callable[[Any, http.HTTPFlow], Awaitable[None] | None]) -> Callable[..., Awaitable[None] | None]:
    """Wrap a WebSocket hook of the addon: an exception ends the interceptions, and its message is not sent upstream."""

    def run(addon: Any, flow: http.HTTPFlow) -> Awaitable[None] | None:
        flow.metadata[HOOK] = hook.__name__
        try:
            waiting = hook(addon, flow)
        except Exception:
            logger.exception("aibridge: an internal error ends requests in a WebSocket")
            _failed(flow)
            return None
        return None if waiting is None else _awaited(waiting, flow)

    run.__name__ = hook.__name__
    return run


async def _awaited(waiting: Awaitable[None], flow: http.HTTPFlow) -> None:
    try:
        await waiting
    except Exception:
        logger.exception("aibridge: an internal error ends requests in a WebSocket")
        _failed(flow)


def missed(flow: http.HTTPFlow, name: str) -> None:
    """Make up for a hook that another addon has kept from the bridge. An unread request is not sent upstream."""
    logger.error("aibridge: the error of another addon has kept a hook from the bridge: hook=%s", name)
    if name == "websocket_start":
        opened(flow)
    elif name == "websocket_end":
        closed(flow)
    elif flow.websocket is not None:
        del flow.websocket.messages[:-1]
        _failed(flow)


def _failed(flow: http.HTTPFlow) -> None:
    """End the interceptions of a socket. A request that could not be read gets an error instead of an answer."""
    socket = flow.metadata.get(SOCKET)
    if not isinstance(socket, BridgedSocket) or flow.websocket is None:
        return
    socket.fail()
    message = flow.websocket.messages[-1] if flow.websocket.messages else None
    if message is not None and message.from_client and not message.dropped and flow.websocket.timestamp_end is None:
        message.drop()
        _inject(flow, error_message(500, INTERNAL_ERROR))


def closed(flow: http.HTTPFlow) -> None:
    """End all interceptions of a connection that has closed."""
    socket = flow.metadata.get(SOCKET)
    if not isinstance(socket, BridgedSocket) or flow.websocket is None:
        return
    by = "client" if flow.websocket.closed_by_client else "upstream"
    code, reason = flow.websocket.close_code, flow.websocket.close_reason or ""
    error_type, message = f"{by}_disconnected", f"WebSocket closed with {code} {reason}".rstrip()
    if is_inactive(flow.client_conn):
        error_type, message = "inactivity", INACTIVE
    for exchange in socket.reader.cut(error_type, message):
        socket.left(exchange)


async def _ended(socket: BridgedSocket, exchange: Exchange, message: WebSocketMessage) -> None:
    """Wait for the rows of an answer before its last message is sent."""
    bridge = socket.bridge_of(exchange)
    recording = bridge.settings.recording
    if recording.durable and not await bridge.committed() and recording.on_failure == "closed":
        message.content = error_message(503, "the record of this answer could not be written")
    socket.left(exchange)


def _answer(
    flow: http.HTTPFlow, socket: BridgedSocket, exchange: Exchange, message: WebSocketMessage, refusal: Refusal
) -> None:
    """Answer a refused request in place of the upstream."""
    emit_refusal(socket.bridge_of(exchange), flow, refusal, socket.head.route, exchange.id)
    exchange.end(refusal.error_type, refusal.reason or refusal.message)
    message.drop()
    socket.reader.withdraw(exchange)
    socket.left(exchange)
    _inject(flow, error_message(refusal.status, refusal.message, refusal.details))


def _inject(flow: http.HTTPFlow, message: bytes) -> None:
    """Send a message to the client."""
    ctx.master.commands.call("inject.websocket", flow, True, message, True)
