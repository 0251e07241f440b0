"""Commands that send parts of an answer to the client."""

from __future__ import annotations

from collections.abc import Iterator

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http import _events as http_events


class ClientSide:
    def __init__(self, client: Client, stream_id: int) -> None:
        self._client = client
        self._id = stream_id

    def head(self, response: http.Response) -> SendHttp:
        return SendHttp(http_events.ResponseHeaders(self._id, response, False), self._client)

    def data(self, data: bytes) -> SendHttp:
        return SendHttp(http_events.ResponseData(self._id, data), self._client)

    def maybe_data(self, data: bytes) -> Iterator[SendHttp]:
        """Send data unless it is empty: an empty chunk ends an HTTP/1.1 body."""
        if data:
            yield self.data(data)

    def end(self) -> SendHttp:
        """Complete the answer."""
        return SendHttp(http_events.ResponseEndOfMessage(self._id), self._client)

    def cut(self, reason: str) -> SendHttp:
        """End an incomplete answer so that the client notices it."""
        return SendHttp(
            http_events.ResponseProtocolError(self._id, reason, http_events.ErrorCode.KILL),
            self._client,
        )
