"""Answer gateway requests that no provider's route matches, and probes of a base URL, which are no mistake."""

from __future__ import annotations

import json

from mitmproxy import http

from aibridge_addon.interception.routing import Route, Router
from aibridge_addon.proxy.flow.state import error_response, json_response


def answer_at_no_route(request: http.Request, router: Router) -> http.Response:
    """Return 404 with the providers, or 200 for `HEAD` to a base URL, which Claude Code sends at its start."""
    if request.method == "HEAD" and router.is_base_url(request.path):
        return http.Response.make(200)
    return no_such_route(None, router)


def is_probe(request: http.Request, response: http.Response) -> bool:
    """Return whether a 404 is the answer to a look at the port, such as that of `aibridge doctor`."""
    return request.path == "/" and response.status_code == 404


def no_such_route(route: Route | None, router: Router) -> http.Response:
    message = "no provider has this route"
    if route is not None:
        return error_response(route.errors, 404, message)
    message = f"{message}. A gateway path is the provider's name and a route. Providers and what they bridge: "
    error = {"type": "not_found_error", "message": message + router.described()}
    return json_response(404, json.dumps({"error": error}).encode())
