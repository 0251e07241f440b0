"""Pass upstream requests and answers to the dumper, if `dump_dir` is set.

All events between a stream and a connection go through `HttpLayer.event_to_child`. So this layer sees every turn and
every attempt. Without `dump_dir` it is not used.
"""

from __future__ import annotations

import logging
import uuid
from typing import assert_never

from mitmproxy import http
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers.http import HTTPMode, HttpStream
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.proxy.flow.state import Bridged, Foreign, Passthrough, Refused, state_of
from aibridge_addon.proxy.stream.layer import BridgeHttpLayer
from aibridge_addon.telemetry.dump import text
from aibridge_addon.telemetry.dump.dumper import Dump, Head

logger = logging.getLogger(__name__)


class DumpingHttpLayer(BridgeHttpLayer):
    sees_events = True

    def __init__(self, ctx: context.Context, mode: HTTPMode) -> None:
        super().__init__(ctx, mode)
        self._dumps: dict[int, Dump] = {}
        """By the id of the upstream stream."""
        self._last: dict[int, tuple[int, int]] = {}
        """The last turn and attempt that were dumped, by the id of the client's stream."""

    def event_to_child(self, child: layer.Layer | HttpStream, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, http_events.HttpEvent):
            try:
                if isinstance(child, HttpStream):
                    self._comes_back(event)
                else:
                    self._goes_up(event)
            except Exception:  # an error in a dump must not affect the traffic
                logger.exception("aibridge: a dump failed")
        yield from super().event_to_child(child, event)
        for stream_id in self._dumps.keys() - self.streams.keys():
            self._dumps.pop(stream_id).end("the rest of the answer was not read")
        for stream_id in self._last.keys() - self.streams.keys():
            del self._last[stream_id]

    def _goes_up(self, event: http_events.HttpEvent) -> None:
        dump = self._dumps.get(event.stream_id)
        match event:
            case http_events.RequestHeaders():
                if (dump := self._opened(event)) is not None:
                    self._dumps[event.stream_id] = dump
                    dump.request(_request_head(event.request), event.request.raw_content)
            case http_events.RequestData() if dump is not None:
                dump.request_data(event.data)
            case http_events.RequestEndOfMessage() if dump is not None:
                dump.request_ended()
            case http_events.RequestProtocolError() if dump is not None:
                self._dumps.pop(event.stream_id).end(f"the client or the bridge broke off: {event.message}")

    def _comes_back(self, event: http_events.HttpEvent) -> None:
        dump = self._dumps.get(event.stream_id)
        if dump is None:
            return
        match event:
            case http_events.ResponseHeaders():
                dump.answer_head(_answer_head(event.response))
            case http_events.ResponseData():
                dump.answer_data(event.data)
            case http_events.ResponseEndOfMessage():
                self._dumps.pop(event.stream_id).end()
            case http_events.ResponseProtocolError():
                self._dumps.pop(event.stream_id).end(f"the upstream broke off: {event.message}")

    def _opened(self, event: http_events.RequestHeaders) -> Dump | None:
        stream = self.streams[event.stream_id]
        state = state_of(stream.flow)
        path = ""
        match state:
            case Foreign() | Refused():
                return None
            case Bridged(exchange=Exchange() as exchange):
                folder = exchange.request.model
                name = f"{exchange.id}-t{exchange.turns + 1}-a{self._attempt(stream.stream_id, exchange.turns + 1)}"
            case Passthrough() | Bridged():
                folder, name = "passthrough", str(uuid.uuid4())
                path = event.request.path.partition("?")[0].lstrip("/")
            case _:
                assert_never(state)
        dumper = state.head.bridge.dumper
        return dumper.open(state.head.route.provider.name, folder, name, path=path) if dumper is not None else None

    def _attempt(self, stream_id: int, turn: int) -> int:
        """Return the number of the attempt that begins, counted from 1 in each turn."""
        last = self._last.get(stream_id, (0, 0))
        attempt = last[1] + 1 if last[0] == turn else 1
        self._last[stream_id] = turn, attempt
        return attempt


def _request_head(request: http.Request) -> Head:
    path = text.target(request.data.path)
    fields = request.headers.fields
    if request.authority and "host" not in request.headers:  # HTTP/2 has it in :authority
        fields = ((b"host", request.data.authority), *fields)
    line = b" ".join((request.data.method, path, request.data.http_version))
    return Head(line, fields, request.headers.get("content-encoding"))


def _answer_head(response: http.Response) -> Head:
    line = b"%s %d %s" % (response.data.http_version, response.status_code, response.data.reason)
    return Head(line.rstrip(), response.headers.fields, response.headers.get("content-encoding"))
