"""Decide which connections are decrypted: those to a provider's host, and to the proxy itself. Others are tunnelled."""

from __future__ import annotations

from mitmproxy.proxy import layer, layers
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.modes import HttpProxy, HttpUpstreamProxy

from aibridge_addon.interception.routing import Router
from aibridge_addon.proxy.connection.addresses import maybe_address
from aibridge_addon.proxy.connection.ourselves import is_own_address


def destination(context: Context, sni: str | None) -> str | None:
    """Return the host name that the client requested, else the name in its TLS ClientHello (SNI).

    In transparent modes only an address is known before the ClientHello. mitmproxy then checks the SNI against the
    upstream's certificate.
    """
    address = context.server.address
    if address is None:
        return sni
    host = address[0]
    return sni or host if is_ip_address(host) else host


def is_for_proxy(context: Context) -> bool:
    """Return whether a TLS greeting is for the proxy itself, outside of any CONNECT."""
    if not isinstance(context.layers[0], HttpProxy | HttpUpstreamProxy):
        return False
    greeted = [seen for seen in context.layers if isinstance(seen, layers.ClientTLSLayer)]
    return len(greeted) == 1 and context.layers[1] is greeted[0]


def is_ip_address(host: str) -> bool:
    return maybe_address(host) is not None


def tunnel_plain(next_layer: layer.NextLayer, router: Router) -> bool:
    """Relay data that is not TLS inside a CONNECT to a host of no provider. Returns whether this is such a case."""
    context = next_layer.context
    address = context.server.address
    inside_connect = (
        any(isinstance(seen, (HttpProxy, HttpUpstreamProxy)) for seen in context.layers) and len(context.layers) > 1
    )
    if not inside_connect or address is None or is_ip_address(address[0]):
        return False
    if router.provider_for_host(address[0]) is not None or is_own_address(address, context.client):
        return False
    next_layer.layer = layers.TCPLayer(context, ignore=True)
    return True
