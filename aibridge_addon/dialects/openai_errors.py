"""The error shape that OpenAI's two dialects share, from the API reference's "Error codes"."""

from __future__ import annotations

import msgspec

ERROR_TYPES = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    407: ("invalid_request_error", "proxy_authentication_required"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("server_error", "service_unavailable"),
}
"""(type, code) by status; anything else is a `server_error`."""


def error_body(status: int, message: str) -> bytes:
    """`{"error": {message, type, param, code}}` as JSON."""
    kind, code = ERROR_TYPES.get(status, ("server_error", None))
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
