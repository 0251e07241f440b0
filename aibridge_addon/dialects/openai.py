"""Common parts of OpenAI's two dialects: errors (API reference, "Error codes"), usage and `tool_choice`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aibridge_addon.dialects.base import NOTHING, Usage
from aibridge_addon.dialects.turns import combined_usage
from aibridge_addon.dialects.usage import are_counts, facts_in
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.json_values import as_count, as_dict

CLIENT_TOOLS = frozenset(("", "function", "custom", "namespace"))
"""Types of tools that are the client's own."""
SYSTEM_ROLES = frozenset(("system", "developer"))
CACHE_READ = ("prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")
"""Names of cached input tokens at DeepSeek, at Moonshot and in gateways before Anthropic's models."""
CACHE_WRITE = ("cache_creation_input_tokens",)
CACHE_MISS = "prompt_cache_miss_tokens"
"""DeepSeek's name of the input tokens that are not cached."""
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
    counts = {f"{inputs}_details.{name}": details.get(name) for name in ("cached_tokens", "cache_write_tokens")}
    counts |= {name: usage.get(name) for name in (inputs, outputs, *CACHE_READ, *CACHE_WRITE)}
    cached = next((n for name in (f"{inputs}_details.cached_tokens", *CACHE_READ) if (n := as_count(counts[name]))), 0)
    written = next(
        (n for name in (f"{inputs}_details.cache_write_tokens", *CACHE_WRITE) if (n := as_count(counts[name]))), 0
    )
    return Usage(
        input_tokens=max(0, as_count(usage.get(inputs)) - cached - written),
        output_tokens=as_count(usage.get(outputs)) + reasoning_beside(usage, inputs, outputs),
        cache_read_input_tokens=cached,
        cache_write_input_tokens=written,
        extra=facts_in(usage, (*counts, CACHE_MISS)),
        complete=are_counts(counts.values()),
    )


def reasoning_beside(usage: Mapping[str, Any], inputs: str, outputs: str) -> int:
    """Return the reasoning tokens if the output count does not include them.

    xAI and Gemini's compatible endpoint count them only in the total.
    """
    reasoning = as_count(as_dict(usage.get(f"{outputs}_details")).get("reasoning_tokens"))
    counted = as_count(usage.get(inputs)) + as_count(usage.get(outputs))
    return reasoning if as_count(usage.get("total_tokens")) == counted + reasoning else 0


def usage_of_turns(turns: Sequence[Mapping[str, Any]], inputs: str, outputs: str) -> dict[str, Any]:
    """Return the `usage` of an answer of several turns: the first turn's input, and the output of all."""
    usage = combined_usage(turns, (inputs.removesuffix("tokens"),), outputs)
    if "total_tokens" in usage:
        beside = sum(reasoning_beside(turn, inputs, outputs) for turn in turns)
        usage["total_tokens"] = as_count(usage.get(inputs)) + as_count(usage.get(outputs)) + beside
    return usage
