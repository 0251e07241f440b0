"""mitmproxy's HTTP layer with our streams in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode

from aibridge_addon.proxying.splicing import SplicingStream


class BridgeHttpLayer(HttpLayer):
    """mitmproxy's HTTP layer with our streams in it."""

    def __init__(self, ctx: context.Context, mode: HTTPMode) -> None:
        super().__init__(ctx, mode)
        # A client's stream ids are positive, so these never collide with one.
        self.turn_ids: Iterator[int] = itertools.count(-2, -2)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = SplicingStream(self.context.fork(), stream_id, self)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())


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
