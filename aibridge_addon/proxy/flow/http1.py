"""Differences between the versions of HTTP on both sides of the bridge.

Frames of HTTP/2 and HTTP/3 end a body without any header, so HTTP/1.1 framing is added to such messages. The bridge
speaks HTTP/1.1 to upstreams of HTTP/1.0 clients, and these get no chunks.
"""

from __future__ import annotations

from mitmproxy import http
from mitmproxy.net.http import url
from mitmproxy.net.http.validate import validate_headers

HTTP_1_0 = "HTTP/1.0"
MAX_DIGITS = 18
"""Digits of a Content-Length. No body is longer, and Python refuses to read very long numbers."""


def content_length(message: http.Message) -> int:
    """Return the bytes that a Content-Length announces. 0: there is none, or it is no number."""
    value = message.headers.get("content-length", "")
    if not (value.isascii() and value.isdigit()):
        return 0
    return int(value) if len(value) <= MAX_DIGITS else 10**MAX_DIGITS


def frame_request(request: http.Request) -> None:
    """Add framing to a request for an HTTP/1.1 server.

    Without it, the server would read the body as the next request.
    """
    if "content-length" in request.headers or not (request.is_http2 or request.is_http3):
        return
    if request.raw_content is None:
        request.headers["transfer-encoding"] = "chunked"  # the body is streamed
    elif request.raw_content:
        request.headers["content-length"] = str(len(request.raw_content))


def drop_trailers(flow: http.HTTPFlow) -> None:
    """Drop the trailers of a streamed request for an HTTP/1.1 server. mitmproxy raises an error for them."""
    if flow.request.trailers and flow.server_conn.connected and flow.server_conn.alpn not in (b"h2", b"h3"):
        flow.request.trailers = None


def frame_answer(flow: http.HTTPFlow) -> None:
    """Add framing to an answer for an HTTP/1.1 client.

    Without it, a connection that breaks off looks like the end of the body.
    """
    request, response = flow.request, flow.response
    assert response is not None
    if request.http_version == HTTP_1_0:
        response.headers.pop("transfer-encoding", None)  # the end of the connection ends the body
        return
    framed = response.is_http2 or response.is_http3
    bodiless = request.method == "HEAD" or response.status_code in (204, 304)
    if framed and not bodiless and request.http_version == "HTTP/1.1" and "content-length" not in response.headers:
        response.headers["transfer-encoding"] = "chunked"


def error_in(response: http.Response) -> str | None:
    """Return why the head of an answer is invalid, or None if it is valid."""
    try:
        validate_headers(response)
    except ValueError as e:
        return f"the upstream sent an invalid answer: {e}"
    return None


def bracket_host(request: http.Request) -> None:
    """Put an IPv6 address in the Host header into brackets (RFC 3986, section 3.2.2), which mitmproxy does not."""
    if ":" in request.host:
        request.host_header = host_header(request.scheme, request.host, request.port)


def host_header(scheme: str, host: str, port: int) -> str:
    """Return the Host header for an address."""
    return url.hostport(scheme, f"[{host}]" if ":" in host else host, port)
