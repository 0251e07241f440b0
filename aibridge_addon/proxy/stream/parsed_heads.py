"""Make mitmproxy's requests and responses of the lines of an HTTP/1 head.

Does what `read_request_head` and `read_response_head` do. Those check the types of all members, by their annotations,
which takes longer than to parse the head. Here the types follow from the code.
"""

from __future__ import annotations

import time

from mitmproxy.http import Request, RequestData, Response, ResponseData
from mitmproxy.net.http.http1.read import _read_headers, _read_request_line, _read_response_line

from aibridge_addon.proxy.stream.headers import Headers


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
    data.http_version, data.headers = http_version, _read_headers(lines[1:])
    data.headers.__class__ = Headers
    data.content = data.trailers = data.timestamp_end = None
    data.timestamp_start = time.time()
    return data
