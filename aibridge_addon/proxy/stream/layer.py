"""mitmproxy's HTTP layer with our streams in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from mitmproxy.connection import Server
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers.http import GetHttpConnection, HttpLayer, HTTPMode

from aibridge_addon.proxy.connection.scope import is_ip_address
from aibridge_addon.proxy.stream.stream import BridgeHttpStream


class BridgeHttpLayer(HttpLayer):
    """mitmproxy's HTTP layer with our streams in it."""

    def __init__(self, ctx: context.Context, mode: HTTPMode) -> None:
        super().__init__(ctx, mode)
        # A client's stream ids are positive, so these never collide with one.
        self.turn_ids: Iterator[int] = itertools.count(-2, -2)

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> layer.CommandGenerator[None]:
        """Open connections as we need them.

        Those that failed are forgotten: mitmproxy would answer with their error for as long as the client stays. And a
        host that is dialled by name is greeted by that name: mitmproxy would use the one in the client's own greeting,
        which may be another's behind the same address.
        """
        server = self.context.server
        if server.sni is None and event.address == server.address and not is_ip_address(event.address[0]):
            server.sni = event.address[0]
        for connection in [c for c in self.connections if isinstance(c, Server) and event.connection_spec_matches(c)]:
            if connection.error and connection not in self.waiting_for_establishment:
                if _is_over(connection):
                    del self.connections[connection]
                else:  # the event of its end is still to come
                    reuse = False
        yield from super().get_connection(event, reuse=reuse)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = BridgeHttpStream(self.context.fork(), stream_id, self)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())


def _is_over(connection: Server) -> bool:
    """Whether no further event of a connection will come: it was never open, or it has been closed."""
    return connection.timestamp_tcp_setup is None or connection.timestamp_end is not None


def bridge_http(next_layer: layer.NextLayer, kind: type[BridgeHttpLayer]) -> None:
    """Where mitmproxy has decided for its HTTP layer, put ours in its place."""
    parent: layer.Layer | None = None
    chosen = next_layer.layer
    while (child := getattr(chosen, "child_layer", None)) is not None:
        parent, chosen = chosen, child
    if chosen is None or type(chosen) is not HttpLayer:
        return
    chosen.context.layers.remove(chosen)
    ours = kind(chosen.context, chosen.mode)
    if parent is None:
        next_layer.layer = ours
    else:
        parent.child_layer = ours  # type: ignore[attr-defined]
