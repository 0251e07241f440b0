"""Common parts of OpenAI's two dialects: errors (API reference, "Error codes"), usage and `tool_choice`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from aibridge_addon.dialects.base import MAX_WISH, NOTHING, Usage
from aibridge_addon.dialects.turns import combined_usage
from aibridge_addon.dialects.usage import facts_in, unread
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_text, maybe_count

CLIENT_TOOLS = frozenset(("", "function", "custom", "namespace"))
"""Types of tools that are the client's own."""
MAX_TOOLS = 128
"""Tools of one request. The API refuses more: "Invalid 'tools': array too long"."""
SYSTEM_ROLES = frozenset(("system", "developer"))
NAMES = (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens"))
"""Names of the input and the output count in Chat Completions and in Responses."""
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

TYPES_OF_CODES: Mapping[str, str] = MappingProxyType({"budget_exceeded": "insufficient_quota"})
"""Types of errors that their code decides, whatever the status."""


def error_body(status: int, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
    """Return `{"error": {message, type, param, code}}` as JSON. See `Dialect.error_event` for `details`."""
    kind, code = ERROR_TYPES.get(status, ("server_error", None))
    kind = TYPES_OF_CODES.get(as_text(details.get("code")), kind)
    return encode({"error": {"message": message, "type": kind, "param": None, "code": code, **details}})


def demands_call(body: JSONObject) -> bool:
    """Return whether the `tool_choice` of a request demands a call."""
    choice = body.get("tool_choice")
    return choice == "required" or isinstance(choice, dict)


def cache_lifetime(body: JSONObject) -> dict[str, str]:
    """Return for how long a request wants its prompt to be cached (`prompt_cache_options`, since GPT-5.6)."""
    ttl = as_text(as_dict(body.get("prompt_cache_options")).get("ttl"))
    return {"prompt_cache_options.ttl": ttl[:MAX_WISH]} if ttl else {}


def modality_in(body: JSONObject, member: str) -> dict[str, str]:
    """Return whether a request contains audio, which may be billed otherwise than text.

    Quotes inside a JSON string are escaped, so these bytes can only be the type of a part.
    """
    return {"modality": "audio"} if b'"input_audio"' in body.raw(member) else {}


def read_usage(usage: Mapping[str, Any], inputs: str, outputs: str) -> Usage:
    """Read a `usage` object. `inputs` and `outputs` name its counts.

    The input count includes cached tokens, and the output count includes reasoning, unless the total says otherwise.
    """
    inputs, outputs = _names(usage, inputs, outputs)
    details = as_dict(usage.get(f"{inputs}_details"))
    counts = {f"{inputs}_details.{name}": details.get(name) for name in ("cached_tokens", "cache_write_tokens")}
    counts |= {name: usage.get(name) for name in (inputs, outputs, *CACHE_READ, *CACHE_WRITE)}
    cache = _cached(usage, inputs)
    beside = _beside(usage, inputs, outputs, cache)
    not_read = unread(counts)
    return Usage(
        input_tokens=max(0, as_count(usage.get(inputs)) - (0 if beside.cached else sum(cache))),
        output_tokens=as_count(usage.get(outputs)) + beside.reasoning,
        cache_read_input_tokens=cache.read,
        cache_write_input_tokens=cache.written,
        extra=facts_in(usage, (*counts, CACHE_MISS)) | not_read,
        complete=not not_read and beside.plain and _has_both(usage, inputs, outputs),
    )


def _has_both(usage: Mapping[str, Any], inputs: str, outputs: str) -> bool:
    """Return whether both counts are there, or the total says that the other one is 0: embeddings have no output."""
    given = usage.get(inputs), usage.get(outputs)
    one = sum(map(as_count, given))
    return None not in given or (one > 0 and one == as_count(usage.get("total_tokens")))


def _names(usage: Mapping[str, Any], inputs: str, outputs: str) -> tuple[str, str]:
    """Return the names of the two counts. Some gateways use those of OpenAI's other dialect."""
    for names in ((inputs, outputs), *NAMES):
        if names[0] in usage or names[1] in usage:
            return names
    return inputs, outputs


class _Cache(NamedTuple):
    """Input tokens that were read from a cache, and those that were written to it."""

    read: int
    written: int


def _cached(usage: Mapping[str, Any], inputs: str) -> _Cache:
    details = as_dict(usage.get(f"{inputs}_details"))
    read = (details.get("cached_tokens"), *map(usage.get, CACHE_READ))
    written = (details.get("cache_write_tokens"), *map(usage.get, CACHE_WRITE))
    return _Cache(next(filter(None, map(as_count, read)), 0), next(filter(None, map(as_count, written)), 0))


class _Beside(NamedTuple):
    """What a usage object does not include in its two counts."""

    reasoning: int
    """Tokens that the model wrote beside the output count."""
    cached: bool
    """Cached tokens are not part of the input count."""
    plain: bool
    """False: the counts contradict each other."""


def _beside(usage: Mapping[str, Any], inputs: str, outputs: str, cache: _Cache) -> _Beside:
    """Find out by the total what the two counts do not include.

    xAI counts reasoning only in the total. Gemini's compatible endpoint does so, too, and does not name it. Gateways
    before other vendors' models count cached tokens beside the prompt.
    """
    read = as_count(usage.get(inputs))
    stored, apart = sum(cache), cache.read > read
    total = as_count(usage.get("total_tokens"))
    rest = total - read - as_count(usage.get(outputs))
    if rest <= 0:
        return _Beside(0, apart, stored <= read or (apart and total > 0))
    reasoning = as_count(as_dict(usage.get(f"{outputs}_details")).get("reasoning_tokens"))
    if rest == reasoning:
        return _Beside(reasoning, apart, stored <= read or apart)
    if stored and rest in (stored, stored + reasoning):
        return _Beside(rest - stored, cached=True, plain=True)
    if reasoning or stored > read or maybe_count(usage.get(outputs)) is None or maybe_count(usage.get(inputs)) is None:
        return _Beside(0, apart, plain=False)
    return _Beside(rest, cached=False, plain=True)


def usage_of_turns(turns: Sequence[Mapping[str, Any]], inputs: str, outputs: str) -> dict[str, Any]:
    """Return the `usage` of an answer of several turns: the first turn's input, and the output of all."""
    usage = combined_usage(turns, (inputs.removesuffix("tokens"),), outputs)
    if "total_tokens" in usage:
        beside = sum(_beside(turn, inputs, outputs, _cached(turn, inputs)).reasoning for turn in turns)
        usage["total_tokens"] = as_count(usage.get(inputs)) + as_count(usage.get(outputs)) + beside
    return usage
