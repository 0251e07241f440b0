"""Whether a connection of a client carries anything, as its layers show."""

from __future__ import annotations

from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream
from mitmproxy.proxy.tunnel import TunnelLayer

MAX_DEPTH = 16
"""Tunnels in tunnels. A connection with more of them is idle, whatever they carry."""
UNDECIDED = (
    modes.HttpProxy,
    modes.HttpUpstreamProxy,
    modes.DestinationKnown,  # reverse, transparent, SOCKS5
    TunnelLayer,
    HttpStream,
)
"""Layers that wait for a greeting, or for the first bytes by which the next layer is chosen."""


def is_busy(top: Layer, depth: int = 0) -> bool:
    """Return whether a request, an answer or a tunnel is under way. Incomplete heads and greetings are not."""
    if depth == MAX_DEPTH:
        return False
    innermost = top.context.layers[-1]
    if not isinstance(innermost, HttpLayer):
        return not isinstance(innermost, UNDECIDED)
    # A CONNECT is a stream whose child is the first layer of its tunnel.
    return any(
        stream.child_layer is None or is_busy(stream.child_layer, depth + 1) for stream in innermost.streams.values()
    )
