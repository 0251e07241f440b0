"""Keep what the client gets of streamed answers, for the interactive tools."""

from __future__ import annotations

from dataclasses import dataclass, field

from mitmproxy import ctx as mitm
from mitmproxy import hooks, http
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers.http import HTTPMode, HttpStream
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.proxy.interactive.kept_bodies import KeptBodies
from aibridge_addon.proxy.stream.dumping import DumpingHttpLayer
from aibridge_addon.proxy.stream.layer import BridgeHttpLayer


@dataclass(slots=True)
class _Body:
    flow: http.HTTPFlow
    data: bytearray = field(default_factory=bytearray)
    size: int = 0


class KeepingHttpLayer(BridgeHttpLayer):
    """All events for the client's connection go through `event_to_child`."""

    sees_events = True

    def __init__(self, ctx: context.Context, mode: HTTPMode) -> None:
        super().__init__(ctx, mode)
        self._bodies: dict[int, _Body] = {}
        """By the id of the client's stream."""

    def event_to_child(self, child: layer.Layer | HttpStream, event: events.Event) -> layer.CommandGenerator[None]:
        to_client = isinstance(event, http_events.HttpEvent) and child is self.connections.get(self.context.client)
        if to_client and self.kept is not None and isinstance(event, http_events.HttpEvent):
            self._sent(event, self.kept)
        yield from super().event_to_child(child, event)

    def _sent(self, event: http_events.HttpEvent, kept: KeptBodies) -> None:
        match event:
            case http_events.ResponseHeaders() if event.stream_id in self.streams:
                flow = self.streams[event.stream_id].flow
                if flow.response is not None and flow.response.stream:
                    self._bodies[event.stream_id] = _Body(flow)
            case http_events.ResponseData() if (body := self._bodies.get(event.stream_id)) is not None:
                body.size += len(event.data)
                body.data += event.data[: max(0, kept.limit - len(body.data))]
            case http_events.ResponseEndOfMessage() | http_events.ResponseProtocolError():
                if (body := self._bodies.pop(event.stream_id, None)) is not None:
                    kept.keep(body.flow, bytes(body.data), body.size)
                    mitm.master.addons.trigger(hooks.UpdateHook([body.flow]))


class KeepingAndDumpingHttpLayer(KeepingHttpLayer, DumpingHttpLayer):
    """Both at once."""
