"""Make mitmproxy's requests and responses of the lines of an HTTP/1 head.

Does what `read_request_head` and `read_response_head` do. Those check the types of all members, by their annotations,
which takes longer than to parse the head. Here the types follow from the code. Headers are looked up about 30 times for
each request, so they have quicker methods.
"""

from __future__ import annotations

import time
from typing import Any

from mitmproxy.http import Headers, Request, RequestData, Response, ResponseData
from mitmproxy.net.http.http1.read import _read_headers, _read_request_line, _read_response_line


def request_of(lines: list[bytes]) -> Request:
    """Return the request of a head, without a body.

    Raises:
        ValueError: The head is malformed.
    """
    host, port, method, scheme, authority, path, http_version = _read_request_line(lines[0])
    data = _with_members(RequestData, http_version, lines)
    data.host, data.port, data.method = host, port, method
    data.scheme, data.authority, data.path = scheme, authority, path
    request = Request.__new__(Request)
    request.data = data
    return request


def response_of(lines: list[bytes]) -> Response:
    """Return the response of a head, without a body.

    Raises:
        ValueError: The head is malformed.
    """
    http_version, status_code, reason = _read_response_line(lines[0])
    data = _with_members(ResponseData, http_version, lines)
    data.status_code, data.reason = status_code, reason
    response = Response.__new__(Response)
    response.data = data
    return response


def _with_members[Data: (RequestData, ResponseData)](kind: type[Data], http_version: bytes, lines: list[bytes]) -> Data:
    """Return an instance with the members that requests and responses have in common."""
    data = kind.__new__(kind)
    data.http_version, data.headers = http_version, QuickHeaders.of(_read_headers(lines[1:]))
    data.content = data.trailers = data.timestamp_end = None
    data.timestamp_start = time.time()
    return data


class QuickHeaders(Headers):
    """Headers that call nothing for each name that they compare, and raise no error for a name that is missing."""

    @classmethod
    def of(cls, headers: Headers) -> QuickHeaders:
        quick = cls.__new__(cls)
        quick.fields = headers.fields
        return quick

    def get_all(self, name: str | bytes) -> list[str]:
        wanted = (name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")).lower()
        size = len(wanted)
        return [
            value.decode("utf-8", "surrogateescape")
            for each, value in self.fields
            if len(each) == size and each.lower() == wanted
        ]

    def get(self, key: str | bytes, default: Any = None) -> Any:
        return self._reduce_values(found) if (found := self.get_all(key)) else default

    def __contains__(self, key: object) -> bool:
        return bool(self.get_all(key))  # type: ignore[arg-type]
