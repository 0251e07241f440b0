"""What we send to the client ourselves."""

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
        """HTTP/2 has no use for an empty piece, and HTTP/1.1 takes one for the end."""
        if data:
            yield self.data(data)

    def end(self) -> SendHttp:
        """The answer is complete."""
        return SendHttp(http_events.ResponseEndOfMessage(self._id), self._client)

    def cut(self, reason: str) -> SendHttp:
        """The answer is not complete, and the client is to notice."""
        return SendHttp(
            http_events.ResponseProtocolError(self._id, reason, http_events.ErrorCode.KILL),
            self._client,
        )
