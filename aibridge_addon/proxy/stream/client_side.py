"""Commands that send parts of an answer to the client."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http import _events as http_events

logger = logging.getLogger(__name__)

Transform = Callable[[bytes], bytes | Iterable[bytes]]
"""A function that another addon has set as `stream` of a message: it gets each piece of the body, then `b""`."""


def transformed(transform: Transform, data: bytes) -> bytes:
    """Return what a function of another addon makes of a piece of a body."""
    made = transform(data)
    return made if isinstance(made, bytes) else b"".join(made)


class ClientSide:
    def __init__(self, client: Client, stream_id: int) -> None:
        self._client = client
        self._id = stream_id
        self.transform: Transform | None = None
        """What another addon does with each piece of the answer."""
        self._stored: bytearray | None = None

    def adopt(self, response: http.Response, *, store: bool) -> None:
        """Take over what another addon wants to do with the pieces of an answer. `store`: keep the answer."""
        if callable(response.stream):
            self.transform = response.stream
            response.stream = True
        if store and self._stored is None:
            self._stored = bytearray()

    @property
    def only_sends(self) -> bool:
        """Whether a piece of the answer is sent as it is, and nothing else is done with it."""
        return self.transform is None and self._stored is None

    def complete(self, response: http.Response, held: bytes, *, streamed: bool) -> None:
        """Put the body into an answer that is complete. `held`: its end, which is sent later."""
        if streamed:
            if self._stored is not None:
                response.raw_content = bytes(self._stored + held)
        elif self.transform is not None:
            response.raw_content = self._whole(self.transform, response.raw_content or b"")
            if "content-length" in response.headers:
                response.headers["content-length"] = str(len(response.raw_content))

    def _whole(self, transform: Transform, body: bytes) -> bytes:
        self.transform = None
        return transformed(transform, body) + transformed(transform, b"")

    def head(self, response: http.Response) -> SendHttp:
        return SendHttp(http_events.ResponseHeaders(self._id, response, False), self._client)

    def data(self, data: bytes) -> SendHttp:
        return SendHttp(http_events.ResponseData(self._id, data), self._client)

    def maybe_data(self, data: bytes) -> Iterator[SendHttp]:
        """Send a piece of the answer unless it is empty: an empty chunk ends an HTTP/1.1 body."""
        if data and self.transform is not None:
            data = transformed(self.transform, data)
        if data:
            if self._stored is not None:
                self._stored += data
            yield self.data(data)

    def finish(self) -> Iterator[SendHttp]:
        """Send what another addon has kept back of the pieces."""
        if (transform := self.transform) is not None:
            self.transform = None
            yield from self.maybe_data(transformed(transform, b""))

    def last(self, data: bytes) -> list[SendHttp] | None:
        """Send the last piece of the answer. None: another addon's function fails, so nothing can be added."""
        try:
            return [*self.maybe_data(data), *self.finish()]
        except Exception:
            logger.exception("aibridge: an addon's function for the pieces of an answer failed")
            return None

    def end(self) -> SendHttp:
        """Complete the answer."""
        return SendHttp(http_events.ResponseEndOfMessage(self._id), self._client)

    def cut(self, reason: str) -> SendHttp:
        """End an incomplete answer so that the client notices it."""
        return SendHttp(
            http_events.ResponseProtocolError(self._id, reason, http_events.ErrorCode.KILL),
            self._client,
        )
