"""What is done to a request's head because of how mitmproxy treats requests."""

from __future__ import annotations

from mitmproxy import http
from mitmproxy.proxy import context
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.proxy.flow.state import ORIGIN_FORM


def bring_flow(event: http_events.RequestHeaders, ctx: context.Context, mode: HTTPMode) -> None:
    """Mark a request in origin form to a port that proxies: it is meant for us, not for a third host.

    mitmproxy fills in a missing host, after which the two forms of a request look alike. A flow that is
    brought along is used as it is, so the mark is on it before the first hook.
    """
    if event.replay_flow is not None:
        return
    event.replay_flow = flow = http.HTTPFlow(ctx.client, ctx.server)
    if mode is not HTTPMode.transparent and event.request.method != "CONNECT" and not event.request.host:
        flow.metadata[ORIGIN_FORM] = True
        if ctx.options.proxyauth:
            _offer_basic_authentication(event.request.headers)


def _offer_basic_authentication(headers: http.Headers) -> None:
    """Clients of a gateway know no proxy: their user and password come as `Authorization: Basic`."""
    basic = headers.get("authorization", "").lower().startswith("basic ")
    if basic and "proxy-authorization" not in headers:
        headers["proxy-authorization"] = headers.pop("authorization")


def frame_for_http1(request: http.Request) -> None:
    """Say in a header where the body ends: a request that came over HTTP/2 goes to a server that speaks HTTP/1.

    Without one, the server takes the body for the next request.
    """
    if "content-length" in request.headers or not (request.is_http2 or request.is_http3):
        return
    if request.raw_content is None:
        request.headers["transfer-encoding"] = "chunked"  # it is streamed
    elif request.raw_content:
        request.headers["content-length"] = str(len(request.raw_content))
