"""Replace mitmproxy's HTTP layer by one that creates the bridge's streams and connections."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

from mitmproxy.connection import Connection, Server
from mitmproxy.proxy import commands, context, events, layer, tunnel
from mitmproxy.proxy.layers import modes, quic, tls
from mitmproxy.proxy.layers.http import GetHttpConnection, GetHttpConnectionCompleted, HttpLayer, HTTPMode, HttpStream
from mitmproxy.proxy.layers.http._upstream_proxy import HttpUpstreamProxy

from aibridge_addon.config.schema import Limits
from aibridge_addon.interception.buffers import Buffers
from aibridge_addon.proxy.connection.scope import is_ip_address
from aibridge_addon.proxy.flow import internal_error
from aibridge_addon.proxy.interactive.kept_bodies import KeptBodies
from aibridge_addon.proxy.stream.connections import BridgeHttpClient, client_connection, upstream_connection
from aibridge_addon.proxy.stream.emptied import empty
from aibridge_addon.proxy.stream.guard import Crashed
from aibridge_addon.proxy.stream.short_way import PlainServer, is_switched_on
from aibridge_addon.proxy.stream.stream import BridgeHttpStream

logger = logging.getLogger(__name__)

DEFAULT_LIMITS = Limits()
MODES = (modes.HttpProxy, modes.HttpUpstreamProxy, modes.ReverseProxy, modes.TransparentProxy, modes.Socks5Proxy)


class BridgeHttpLayer(HttpLayer):
    """An `HttpLayer` whose streams are `BridgeHttpStream`s, and which chooses upstream connections itself.

    `get_connection` differs from mitmproxy's as follows:

    - A connection that takes no further requests is not used again; see `http2`.
    - Failed connections are removed. mitmproxy would answer with their error until the client disconnects.
    - The SNI is the name of the requested host. mitmproxy would use the client's own SNI, which may name another
      host at the same address.
    """

    sees_events = False
    """Whether a subclass looks at the events between streams and connections, so that none may be left out."""
    kept: KeptBodies | None = None
    """Keeps the bodies of streamed answers; see `keeping`."""
    limits = DEFAULT_LIMITS
    buffers: Buffers | None = None
    """The bytes of requests and answers in memory. None: nothing counts them."""

    def __init__(self, ctx: context.Context, mode: HTTPMode) -> None:
        super().__init__(ctx, mode)
        # Stream ids of clients are positive, so negative ones never collide with them.
        self.turn_ids: Iterator[int] = itertools.count(-2, -2)
        self.handling: HttpStream | None = None
        self.over: list[HttpStream] = []
        self.has_short_way = is_switched_on() and not self.sees_events
        self.retired: set[Connection] = set()
        """Upstream connections that take no further requests."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            if type(event) is events.DataReceived and (child := self.connections.get(event.connection)) is not None:
                yield from self.event_to_child(child, event)
            else:
                yield from self._dispatch(event)
            while self.over:  # not before: a stream may handle an event within another one
                empty(self.over.pop())
        except GeneratorExit:  # a layer around this one has crashed, and mitmproxy drops all of them
            self._abandon()
            raise
        except Exception as e:  # noqa: BLE001 (it is logged with each request that it ends)
            yield from self._crashed(event, e)

    def _crashed(self, event: events.Event, error: Exception) -> layer.CommandGenerator[None]:
        """End the requests that an exception of mitmproxy's own code concerns, or else the connection."""
        connection = event.connection if isinstance(event, events.ConnectionEvent) else None
        if self.handling is not None:
            concerned = [self.handling]
        elif isinstance(connection, Server):
            concerned = [stream for stream in self.streams.values() if stream.context.server is connection]
        else:
            concerned = []
        try:
            for stream in concerned:
                yield from self.event_to_child(stream, Crashed(error))
            if isinstance(connection, Server):
                yield commands.CloseConnection(connection)
        except Exception as e:  # noqa: BLE001 (it is logged below)
            error, concerned = e, []
        if not concerned:
            logger.error("aibridge: an internal error ends a connection", exc_info=error)
            self._abandon()
            self._handle_event = self._ignore  # type: ignore[method-assign,assignment]
            for open_connection in [*self.connections]:
                yield commands.CloseConnection(open_connection)

    def _abandon(self) -> None:
        for stream in self.streams.values():
            if (flow := getattr(stream, "flow", None)) is not None:
                internal_error.abandon(flow)

    def _ignore(self, _event: events.Event) -> layer.CommandGenerator[None]:
        yield from ()

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = BridgeHttpStream(forked(self.context), stream_id, self)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    # --- connections ------------------------------------------------------------------------------------------

    def _dispatch(self, event: events.Event) -> layer.CommandGenerator[None]:
        server = self.context.server
        if isinstance(event, events.Start):
            self.connections.setdefault(self.context.client, client_connection(self.context.fork(), self.limits))
            if not server.connected:  # no connection that was opened before can bring anything
                self._dispatch = super()._handle_event  # type: ignore[method-assign]
        elif isinstance(event, events.DataReceived) and event.connection == server and server not in self.connections:
            return self._upstream_speaks_first(event)
        generator: layer.CommandGenerator[None] = super()._handle_event(event)
        return generator

    def _upstream_speaks_first(self, event: events.DataReceived) -> layer.CommandGenerator[None]:
        """Handle data on a connection that was opened before any request, such as HTTP/2 settings."""
        self.connections[self.context.server] = upstream = upstream_connection(
            self.context.fork(), self.retired.add, self.limits
        )
        yield from self.event_to_child(upstream, events.Start())
        yield from self.event_to_child(upstream, event)

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> layer.CommandGenerator[None]:
        """Give a stream an upstream connection: one that is open or being opened, else a new one."""
        self._remove_ended()
        for connection in self.connections if reuse else ():
            if not isinstance(connection, Server) or not event.connection_spec_matches(connection):
                continue
            if connection in self.waiting_for_establishment:
                self.waiting_for_establishment[connection].append(event)
                return
            if self._takes_requests(connection):
                yield from self._give(event, connection)
                return
        server = self.context.server
        is_own = server not in self.connections and event.connection_spec_matches(server)
        if is_own and server.error:
            yield from self._give(event, None, server.error)
            return
        stack = self._new_stack(event, server if is_own and server.connected else None)
        opened = stack[0].context.server
        self.connections[opened] = stack[0]
        self.waiting_for_establishment[opened].append(event)
        yield from self.event_to_child(stack[0], events.Start())

    def _takes_requests(self, connection: Server) -> bool:
        # An HTTP/1.1 connection answers one request of an HTTP/2 client, see `HttpLayer.register_connection`.
        only_one = self.context.client.alpn == b"h2" and connection.alpn != b"h2"
        return connection.connected and not connection.error and not only_one and connection not in self.retired

    def _give(
        self, event: GetHttpConnection, connection: Connection | None, error: str = ""
    ) -> layer.CommandGenerator[None]:
        stream = self.command_sources.pop(event)
        reply = (None, error) if connection is None else (connection, None)
        yield from self.event_to_child(stream, GetHttpConnectionCompleted(event, reply))

    def _new_stack(self, event: GetHttpConnection, opened: Server | None) -> tunnel.LayerStack:
        """Return the layers of a new upstream connection. `opened`: use this one, which is open."""
        ctx = self.context.fork()
        stack = tunnel.LayerStack()
        if opened is None:
            kind = Server if event.tls or event.via or not self._is_outermost else PlainServer
            ctx.server = kind(address=event.address, transport_protocol=event.transport_protocol)
            if event.via:
                ctx.server.via = event.via
                # In upstream mode, requests in absolute form need no CONNECT.
                stack /= HttpUpstreamProxy.make(ctx, event.tls or self.mode is not HTTPMode.upstream)
            if event.tls:
                ctx.server.sni = self._sni(event.address)
                stack /= quic.ServerQuicLayer(ctx) if event.transport_protocol == "udp" else tls.ServerTLSLayer(ctx)
        stack /= BridgeHttpClient(ctx, self.retired.add, self.limits)
        return stack

    @property
    def _is_outermost(self) -> bool:
        """Whether only a mode of the proxy is around this layer: no TLS, no tunnel, and no layer of another addon."""
        return all(each is self or type(each) in MODES for each in self.context.layers)

    def _sni(self, address: tuple[str, int]) -> str:
        host = address[0].rstrip(".")  # RFC 6066, section 3: without a trailing dot
        if self.mode is HTTPMode.transparent and address == self.context.server.address:
            # Reverse mode may set a name. In transparent modes, only an address is known.
            return self.context.server.sni or (self.context.client.sni if is_ip_address(host) else None) or host
        return host

    def _remove_ended(self) -> None:
        """Remove upstream connections that have failed or been retired, when no further events of them can come."""
        ended = [
            connection
            for connection in self.connections
            if isinstance(connection, Server)
            and (connection.error or connection in self.retired)
            and connection not in self.waiting_for_establishment
            and _is_over(connection)
        ]
        for connection in ended:
            del self.connections[connection]
            self.retired.discard(connection)


def forked(ctx: context.Context) -> context.Context:
    """Fork a context as mitmproxy does, without the connection that it makes and drops: 20 µs for each request."""
    fork = context.Context.__new__(context.Context)
    fork.client, fork.server, fork.options, fork.layers = ctx.client, ctx.server, ctx.options, [*ctx.layers]
    return fork


def _is_over(connection: Server) -> bool:
    """Return whether no further events of a connection will arrive: it was never open, or it was closed."""
    return connection.timestamp_tcp_setup is None or connection.timestamp_end is not None


def bridge_http(
    next_layer: layer.NextLayer,
    kind: type[BridgeHttpLayer],
    kept: KeptBodies | None = None,
    limits: Limits = DEFAULT_LIMITS,
    buffers: Buffers | None = None,
) -> None:
    """Replace the `HttpLayer` that mitmproxy has chosen, if there is one, by ours."""
    parent: layer.Layer | None = None
    chosen = next_layer.layer
    while (child := getattr(chosen, "child_layer", None)) is not None:
        parent, chosen = chosen, child
    if chosen is None or type(chosen) is not HttpLayer:
        return
    chosen.context.layers.remove(chosen)
    ours = kind(chosen.context, chosen.mode)
    ours.kept = kept
    ours.limits = limits
    ours.buffers = buffers
    if parent is None:
        next_layer.layer = ours
    else:
        parent.child_layer = ours  # type: ignore[attr-defined]
