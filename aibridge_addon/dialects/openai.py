"""Common parts of OpenAI's two dialects: errors (API reference, "Error codes"), usage and `tool_choice`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aibridge_addon.dialects.base import NOTHING, Usage, counts_beside
from aibridge_addon.dialects.turns import combined_usage
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.json_values import as_count, as_dict

SYSTEM_ROLES = frozenset(("system", "developer"))
ERROR_TYPES: Mapping[int, tuple[str, str | None]] = MappingProxyType(
    {
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
)
"""(type, code) by status. Any other status is a `server_error`."""


def error_body(status: int, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
    """Return `{"error": {message, type, param, code}}` as JSON. See `Dialect.error_event` for `details`."""
    kind, code = ERROR_TYPES.get(status, ("server_error", None))
    return encode({"error": {"message": message, "type": kind, "param": None, "code": code, **details}})


def auto_if_forced(body: JSONObject) -> dict[str, bytes]:
    """Return the change that resets a forced `tool_choice` to `auto`. The forced call has been made."""
    choice = body.get("tool_choice")
    return {"tool_choice": b'"auto"'} if choice == "required" or isinstance(choice, dict) else {}


def read_usage(usage: Mapping[str, Any], inputs: str, outputs: str) -> Usage:
    """Read a `usage` object. `inputs` and `outputs` name its counts; the input count includes cached tokens."""
    details = as_dict(usage.get(f"{inputs}_details"))
    cached, written = as_count(details.get("cached_tokens")), as_count(details.get("cache_write_tokens"))
    known = {inputs, outputs, f"{inputs}_details.cached_tokens", f"{inputs}_details.cache_write_tokens"}
    return Usage(
        input_tokens=max(0, as_count(usage.get(inputs)) - cached - written),
        output_tokens=as_count(usage.get(outputs)),
        cache_read_input_tokens=cached,
        cache_write_input_tokens=written,
        extra=counts_beside(usage, frozenset(known)),
    )


def usage_of_turns(turns: Sequence[Mapping[str, Any]], inputs: str, outputs: str) -> dict[str, Any]:
    """Return the `usage` of an answer of several turns: the first turn's input, and the output of all."""
    usage = combined_usage(turns, (inputs.removesuffix("tokens"),), outputs)
    if "total_tokens" in usage:
        usage["total_tokens"] = as_count(usage.get(inputs)) + as_count(usage.get(outputs))
    return usage
