"""Read and drop the trailers of HTTP/1.1 bodies. mitmproxy raises `NotImplementedError` for them.

A proxy that cannot merge or forward trailers may drop them (RFC 9110, section 6.5.1).
"""

from __future__ import annotations

from functools import partial

from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Server


def without_trailers[Connection: Http1Server | Http1Client](connection: Connection) -> Connection:
    """Let a connection accept trailers, and return it."""
    connection.read_body = partial(_read_body, connection)  # type: ignore[method-assign]
    return connection


def _read_body(connection: Http1Server | Http1Client, event: events.Event) -> layer.CommandGenerator[None]:
    try:
        yield from type(connection).read_body(connection, event)
    except NotImplementedError:  # the trailers were read, and nothing else of the end was handled
        assert connection.stream_id is not None
        yield ReceiveHttp(connection.ReceiveEndOfMessage(connection.stream_id))
        is_request = isinstance(connection, Http1Server)
        yield from connection.mark_done(request=is_request, response=not is_request)
