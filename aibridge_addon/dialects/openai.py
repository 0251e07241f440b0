"""What OpenAI's two dialects share: the shape of errors (API reference, "Error codes") and of `tool_choice`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aibridge_addon.dialects.base import NOTHING
from aibridge_addon.wire.json_object import JSONObject, encode

ERROR_TYPES = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    407: ("invalid_request_error", "proxy_authentication_required"),
    413: ("invalid_request_error", "request_too_large"),
    426: ("invalid_request_error", "upgrade_required"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("server_error", "service_unavailable"),
}
"""(type, code) by status; anything else is a `server_error`."""


def error_body(status: int, message: str, told: Mapping[str, Any] = NOTHING) -> bytes:
    """`{"error": {message, type, param, code}}` as JSON; `told` as in `Dialect.error_event`."""
    kind, code = ERROR_TYPES.get(status, ("server_error", None))
    return encode({"error": {"message": message, "type": kind, "param": None, "code": code, **told}})


def auto_if_forced(body: JSONObject) -> dict[str, bytes]:
    """The change that lets the model choose again, after a choice that the request forced has been made."""
    choice = body.get("tool_choice")
    return {"tool_choice": b'"auto"'} if choice == "required" or isinstance(choice, dict) else {}
