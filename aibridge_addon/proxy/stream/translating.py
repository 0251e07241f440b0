"""The bytes of an answer that is given on in another form: they come through its transcoder before we read them."""

from __future__ import annotations

from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.messages_on_bedrock.answer import Unreadably
from aibridge_addon.proxy.stream.attempting import AttemptingStream


class TranslatingStream(AttemptingStream):
    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        if self.state is not None and self.state.translation is not None:
            self._watch()
        return (yield from super().make_server_connection())

    def _handle_event_or_wakeup(self, event: events.Event) -> layer.CommandGenerator[None]:
        translation = self.state.translation if self.state is not None else None
        transcoding = translation.transcoder if translation is not None else None
        ours = isinstance(event, http_events.HttpEvent) and event.stream_id == self.upstream_id
        if translation is None or transcoding is None or not ours:
            yield from super()._handle_event_or_wakeup(event)
        elif isinstance(event, http_events.ResponseData):
            try:
                data = transcoding.feed(event.data)
            except Unreadably as e:
                translation.transcoder = None  # what still comes is nobody's
                yield from self._undecodable(str(e), "corrupt_event_stream")
                return
            if data:
                yield from super()._handle_event_or_wakeup(http_events.ResponseData(event.stream_id, data))
        else:
            if isinstance(event, http_events.ResponseEndOfMessage) and (rest := transcoding.finish()):
                yield from super()._handle_event_or_wakeup(http_events.ResponseData(event.stream_id, rest))
            yield from super()._handle_event_or_wakeup(event)
