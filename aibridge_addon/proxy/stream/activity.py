"""Whether a connection of a client carries anything, as its layers show."""

from __future__ import annotations

from mitmproxy.proxy.layer import Layer, NextLayer
from mitmproxy.proxy.layers.http import HttpLayer

MAX_DEPTH = 16
"""Tunnels in tunnels. A connection with more of them is idle, whatever they carry."""


def is_busy(top: Layer, depth: int = 0) -> bool:
    """Return whether a request, an answer or a tunnel is under way. Incomplete heads and greetings are not."""
    current = top
    while depth < MAX_DEPTH:
        if isinstance(current, HttpLayer):
            # A CONNECT is a stream whose layers are those of the tunnel.
            return any(
                stream.child_layer is None or is_busy(stream.child_layer, depth + 1)
                for stream in current.streams.values()
            )
        is_undecided = isinstance(current, NextLayer)
        below = current.layer if isinstance(current, NextLayer) else getattr(current, "child_layer", None)
        if below is None:
            return not is_undecided
        current = below
    return False
