"""Replace mitmproxy's HTTP layer by one that creates the bridge's streams."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

from mitmproxy.connection import Server
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import GetHttpConnection, HttpLayer, HTTPMode, HttpStream, RegisterHttpConnection

from aibridge_addon.proxy.connection.scope import is_ip_address
from aibridge_addon.proxy.flow import internal_error
from aibridge_addon.proxy.interactive.kept_bodies import KeptBodies
from aibridge_addon.proxy.stream.guard import Crashed
from aibridge_addon.proxy.stream.stream import BridgeHttpStream
from aibridge_addon.proxy.stream.trailers import drop_trailers

logger = logging.getLogger(__name__)


class BridgeHttpLayer(HttpLayer):
    """An `HttpLayer` whose streams are `BridgeHttpStream`s."""

    kept: KeptBodies | None = None
    """Keeps the bodies of streamed answers; see `keeping`."""

    def __init__(self, ctx: context.Context, mode: HTTPMode) -> None:
        super().__init__(ctx, mode)
        # Stream ids of clients are positive, so negative ones never collide with them.
        self.turn_ids: Iterator[int] = itertools.count(-2, -2)
        self.handling: HttpStream | None = None

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            yield from super()._handle_event(event)
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

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> layer.CommandGenerator[None]:
        """Open an upstream connection, with two differences from mitmproxy.

        - Failed connections are removed. mitmproxy would answer with their error until the client disconnects.
        - The SNI is the name of the requested host. mitmproxy would use the client's own SNI, which may name another
          host at the same address.
        """
        server = self.context.server
        if server.sni is None and event.address == server.address and not is_ip_address(event.address[0]):
            server.sni = event.address[0]
        for connection in [c for c in self.connections if isinstance(c, Server) and event.connection_spec_matches(c)]:
            if connection.error and connection not in self.waiting_for_establishment:
                if _is_over(connection):
                    del self.connections[connection]
                else:  # mitmproxy has not handled the end of this connection yet
                    reuse = False
        yield from super().get_connection(event, reuse=reuse)

    def register_connection(self, command: RegisterHttpConnection) -> layer.CommandGenerator[None]:
        drop_trailers(self.connections[command.connection].context.layers[-1])
        yield from super().register_connection(command)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        drop_trailers(self.connections[self.context.client])
        stream = BridgeHttpStream(self.context.fork(), stream_id, self)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())


def _is_over(connection: Server) -> bool:
    """Return whether no further events of a connection will arrive: it was never open, or it was closed."""
    return connection.timestamp_tcp_setup is None or connection.timestamp_end is not None


def bridge_http(next_layer: layer.NextLayer, kind: type[BridgeHttpLayer], kept: KeptBodies | None = None) -> None:
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
    if parent is None:
        next_layer.layer = ours
    else:
        parent.child_layer = ours  # type: ignore[attr-defined]
