"""Replace mitmproxy's HTTP layer by one that creates the bridge's streams."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from mitmproxy.connection import Server
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers.http import GetHttpConnection, HttpLayer, HTTPMode

from aibridge_addon.config.schema import Limits
from aibridge_addon.proxy.connection.scope import is_ip_address
from aibridge_addon.proxy.interactive.kept_bodies import KeptBodies
from aibridge_addon.proxy.stream.stream import BridgeHttpStream

DEFAULT_LIMITS = Limits()


class BridgeHttpLayer(HttpLayer):
    """An `HttpLayer` whose streams are `BridgeHttpStream`s."""

    kept: KeptBodies | None = None
    """Keeps the bodies of streamed answers; see `keeping`."""
    passthrough_body = DEFAULT_LIMITS.passthrough_body
    """Bytes. Bodies of requests that are not bridged are buffered up to this size; see `body_size`."""

    def __init__(self, ctx: context.Context, mode: HTTPMode) -> None:
        super().__init__(ctx, mode)
        # Stream ids of clients are positive, so negative ones never collide with them.
        self.turn_ids: Iterator[int] = itertools.count(-2, -2)

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

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = BridgeHttpStream(self.context.fork(), stream_id, self)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())


def _is_over(connection: Server) -> bool:
    """Return whether no further events of a connection will arrive: it was never open, or it was closed."""
    return connection.timestamp_tcp_setup is None or connection.timestamp_end is not None


def bridge_http(
    next_layer: layer.NextLayer,
    kind: type[BridgeHttpLayer],
    kept: KeptBodies | None = None,
    limits: Limits = DEFAULT_LIMITS,
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
    ours.passthrough_body = limits.passthrough_body
    if parent is None:
        next_layer.layer = ours
    else:
        parent.child_layer = ours  # type: ignore[attr-defined]
