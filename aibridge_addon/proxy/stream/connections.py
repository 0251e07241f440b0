"""Create the bridge's own kinds of HTTP connections, where mitmproxy would create its own."""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import RegisterHttpConnection, is_h3_alpn
from mitmproxy.proxy.layers.http._base import HttpConnection
from mitmproxy.proxy.layers.http._http3 import Http3Client, Http3Server

from aibridge_addon.config.schema import Limits
from aibridge_addon.proxy.stream.http1 import BridgeHttp1Client, BridgeHttp1Server
from aibridge_addon.proxy.stream.http2 import BridgeHttp2Client, BridgeHttp2Server
from aibridge_addon.proxy.stream.trailers import without_trailers

Retire = Callable[[Connection], None]


def client_connection(ctx: context.Context, limits: Limits) -> HttpConnection:
    """Return the layer of a client's connection, by the protocol that TLS has negotiated."""
    if is_h3_alpn(ctx.client.alpn):
        return Http3Server(ctx)
    if ctx.client.alpn == b"h2":
        return BridgeHttp2Server(ctx, limits)
    return without_trailers(BridgeHttp1Server(ctx, limits))


def upstream_connection(ctx: context.Context, retire: Retire, limits: Limits) -> HttpConnection:
    """Return the layer of an open connection to an upstream.

    `retire` is called when the connection takes no further requests.
    """
    if is_h3_alpn(ctx.server.alpn):
        return Http3Client(ctx)
    if ctx.server.alpn == b"h2":
        return BridgeHttp2Client(ctx, retire)
    return without_trailers(BridgeHttp1Client(ctx, limits))


class BridgeHttpClient(layer.Layer):
    """Opens a connection to an upstream, and then handles it. Replaces mitmproxy's `HttpClient`."""

    child_layer: layer.Layer

    def __init__(self, ctx: context.Context, retire: Retire, limits: Limits) -> None:
        super().__init__(ctx)
        self._retire = retire
        self._limits = limits

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        error: str | None = None
        if not self.context.server.connected:
            error = yield commands.OpenConnection(self.context.server)
        if not error:
            self.child_layer = upstream_connection(self.context, self._retire, self._limits)
            self._handle_event = self.child_layer.handle_event  # type: ignore[method-assign]
            yield from self._handle_event(event)
        yield RegisterHttpConnection(self.context.server, error)
