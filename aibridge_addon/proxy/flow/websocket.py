"""Refuse WebSockets of bridged routes, or read their messages while mitmproxy relays them.

mitmproxy awaits the hook of each message before it sends the message. In that hook, the last message of an answer
waits for its rows. A stop waits for answers, not for idle sockets.

Messages pass unchanged, except where tools are injected; see `socket_tools.py`. What goes in place of a message is in
the `Outbox`, which the layer empties after the hook.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mitmproxy import ctx, http
from mitmproxy.websocket import WebSocketMessage

from aibridge_addon.bridge import Bridge
from aibridge_addon.credentials.tokens import Presented, RefusedToken
from aibridge_addon.dialects.responses.reader import error_message
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.routing import MAX_HOST, Route
from aibridge_addon.proxy.connection.handler import INACTIVE, is_inactive
from aibridge_addon.proxy.flow import socket_tools
from aibridge_addon.proxy.flow.admission import admit, admit_handshake
from aibridge_addon.proxy.flow.bridge_token import refusal_of
from aibridge_addon.proxy.flow.bridged_socket import INTERNAL_ERROR, SOCKET, Began, BridgedSocket, Deferred
from aibridge_addon.proxy.flow.request import upstream_host
from aibridge_addon.proxy.flow.state import (
    HOOK,
    Bridged,
    Dispatch,
    Passthrough,
    Refusal,
    Served,
    emit_refusal,
    state_of,
)
from aibridge_addon.records import Headers

logger = logging.getLogger(__name__)

SWITCHING = 101
"""Status of an answer after which another protocol follows."""


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
    if bridge.settings.websockets == "upgrade_required" or not bridge.reads_websockets:
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


def opened(flow: http.HTTPFlow, began: Began | None = None) -> None:
    """Start reading a WebSocket that the upstream has accepted.

    `began` is called for each interception before its first record.
    """
    state = state_of(flow)
    if isinstance(state, Passthrough) and state.head.route.websocket is not None:
        # The upgrade request is a passthrough; the messages are requests in the dialect.
        route = replace(state.head.route, dialect=state.head.route.websocket)
        head = replace(state.head, route=route)
        socket = flow.metadata[SOCKET] = BridgedSocket(flow, head, upstream_host(flow, head), began)
        socket_tools.use_tools(socket)


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
        socket.use(bridge)
    if message.from_client and socket.head.bridge.refusing:
        message.drop()
        _inject(flow, error_message(503, "the bridge is being stopped"))
        return None
    if message.from_client:
        return _client_said(flow, socket, message)
    return _server_said(socket, message)


def _client_said(flow: http.HTTPFlow, socket: BridgedSocket, message: WebSocketMessage) -> Awaitable[None] | None:
    exchange = socket.reader.from_client(message.content)
    if exchange is None:
        if socket_tools.interrupted(socket, message.content):
            message.drop()
        return None
    refuse = partial(_answer, flow, socket, exchange, message)
    deferred, token = socket.take_deferred(), socket.head.actor.token
    if deferred is not None:
        return _prepared(socket, exchange, deferred, message, refuse)
    if token is not None:
        return _admit_owner(socket, token, exchange, message.content, refuse)
    return admit(socket.bridge_of(exchange), exchange, message.content, refuse)


async def _prepared(
    socket: BridgedSocket,
    exchange: Exchange,
    deferred: Deferred,
    message: WebSocketMessage,
    refuse: Callable[[Refusal], object],
) -> None:
    """Inject tools into a request, and admit it."""
    content = await socket_tools.prepare(socket, exchange, deferred, message.content)
    token = socket.head.actor.token
    if token is not None:
        await _admit_owner(socket, token, exchange, content, refuse)
    elif (waiting := admit(socket.bridge_of(exchange), exchange, content, refuse)) is not None:
        await waiting
    if not message.dropped and content != message.content:
        message.drop()
        socket.outbox.to_server(content)


def _server_said(socket: BridgedSocket, message: WebSocketMessage) -> Awaitable[None] | None:
    if socket.tasks:
        socket_tools.stop_failed(socket, message.content)
    ended = socket.reader.from_server(message.content)
    instead, socket.instead = socket.instead, None
    if instead is not None:
        message.drop()
    if ended is not None:
        return _ended(socket, ended, message, instead.messages if instead is not None else ())
    if instead is not None:
        socket.outbox.to_client(instead.messages)
        socket_tools.run_waiting(socket, instead.exchange)
    return None


async def _admit_owner(
    socket: BridgedSocket, token: Presented, exchange: Exchange, content: bytes, refuse: Callable[[Refusal], object]
) -> None:
    """Admit a request if its socket's token still counts. It may have been revoked since the handshake."""
    bridge = socket.bridge_of(exchange)
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
    socket.stop_tools()
    socket.conversations.end()
    for exchange in socket.reader.cut(error_type, message):
        socket.left(exchange)


async def _ended(
    socket: BridgedSocket, exchange: Exchange, message: WebSocketMessage, instead: Sequence[bytes]
) -> None:
    """Wait for the rows of an answer before its last message is sent, or those `instead` of it."""
    if await socket_tools.committed(socket, exchange):
        socket.outbox.to_client(instead)
    elif message.dropped:
        socket.outbox.to_client([error_message(503, socket_tools.NOT_RECORDED)])
    else:
        message.content = error_message(503, socket_tools.NOT_RECORDED)
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
