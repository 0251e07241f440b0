"""Read token counts, and everything beside them that decides a price."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeGuard

import msgspec

from aibridge_addon.dialects.base import Usage
from aibridge_addon.records import LEFT_OUT
from aibridge_addon.wire.json_object import encode
from aibridge_addon.wire.json_values import as_count, maybe_count

MAX_COUNTS = 64
"""Maximum number of additional members kept of one answer. The provider chooses their names."""
INPUT_AND_OUTPUT = ("input_tokens", "output_tokens")
"""The fields of `Usage` that each answer of a model has."""
MAX_DEPTH = 4
MAX_NAME = 128
"""Characters. Members with longer joined names are dropped."""
MAX_TEXT = 256
"""Characters. Longer texts are dropped: they decide no price."""
MAX_UNREAD = 64
"""Characters kept of a text that should be a count."""
MAX_LIST = 4096
"""Bytes of JSON. Longer lists are dropped."""
BESIDE = (
    *("service_tier", "speed", "inference_geo", "tool_usage", "copilot_usage", "container"),
    *("serviceTier", "performanceConfig", "cost", "cost_details", "prompt_cache_options", "prompt_cache_retention"),
)
"""Members that decide a price and stand beside `usage` in some answers."""
CONDITIONS = ("service_tier", "speed", "inference_geo", "serviceTier", "serviceTier.type", "performanceConfig.latency")
"""Facts about a whole answer that decide the price of its iterations, too."""
AMOUNTS = ("cost", "cost_in_usd_ticks", "total_nano_aiu", "copilot_usage.total_nano_aiu")
"""Facts that state what a whole answer costs."""
DECISIVE = frozenset((*CONDITIONS, *AMOUNTS))


def read_counts(members: Mapping[str, Any], names: Mapping[str, str], required: Collection[str] = ()) -> Usage:
    """Return the counts of a usage object. `names` has the member's name for each field of `Usage`.

    A count that cannot be read is 0. Its value is in `extra`, and the usage is not complete. It is not complete either
    if a count is missing whose field is `required`.
    """
    given = {field: members.get(name) for field, name in names.items()}
    extra = unread({name: members.get(name) for name in names.values()})
    return Usage(
        input_tokens=as_count(given.get("input_tokens")),
        output_tokens=as_count(given.get("output_tokens")),
        cache_read_input_tokens=as_count(given.get("cache_read_input_tokens")),
        cache_write_input_tokens=as_count(given.get("cache_write_input_tokens")),
        extra=extra,
        complete=not extra and all(given[field] is not None for field in required),
    )


def unread(counts: Mapping[str, object]) -> dict[str, Any]:
    """Return the values that should be counts and are none, as texts. A row with one of them has no price."""
    return {name: _shown(value) for name, value in counts.items() if value is not None and maybe_count(value) is None}


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value[:MAX_UNREAD]
    is_short = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64)
    return repr(value) if is_short else type(value).__name__


def facts_in(members: Mapping[str, Any], known: Collection[str] = ()) -> dict[str, Any]:
    """Return the other members of a usage object: numbers, texts, booleans and short lists.

    Names of nested members are joined with dots.
    """
    return _bounded((name, fact) for name, fact in _facts(members, "", MAX_DEPTH) if name not in known)


def facts_beside(holder: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands beside `usage` in an answer, a chunk or a choice, and decides a price."""
    return facts_in({name: holder[name] for name in BESIDE if name in holder})


def joined(*facts: Mapping[str, Any]) -> dict[str, Any]:
    """Join facts within the bound. Later values replace earlier ones."""
    return _bounded(item for part in facts for item in part.items())


def _bounded(facts: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return facts up to `MAX_COUNTS`, and those that decide a price, wherever they stand."""
    found: dict[str, Any] = {}
    for name, fact in facts:
        if name in found or name in DECISIVE or len(found) < MAX_COUNTS:
            found[name] = fact
        else:
            found[LEFT_OUT] = 1
    return found


def facts_of_iteration(answer: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts about an iteration: its own ones, and what the facts about the whole answer mean for it.

    The answer's row has the stated cost of the whole, so the iteration's is 0.
    """
    conditions = {name: answer[name] for name in CONDITIONS if name in answer}
    amounts = {name: _rest_of(answer[name]) for name in AMOUNTS if name in answer}
    return joined(amounts, conditions, own, amounts)


def merged(known: object, value: object) -> object:
    """Return what one row says of two answers: the sum of counts. A text is no count, and it stays."""
    if not _is_number(known):
        return known
    return known + value if _is_number(value) else value


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rest_of(amount: object) -> object:
    """Return 0 for an amount. A value that is none stays, so that the iteration has no price either."""
    return 0 if _is_number(amount) and amount >= 0 else amount


def _facts(members: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in members.items():
        path = prefix + name
        if isinstance(value, dict) and depth and len(path) <= MAX_NAME:
            yield from _facts(value, f"{path}.", depth - 1)
        elif path in DECISIVE and isinstance(value, str):
            yield path, value[:MAX_TEXT]
        elif len(path) <= MAX_NAME and (fact := _fact(name, value)) is not None:
            yield path, fact
        elif len(path) <= MAX_NAME and isinstance(value, int):
            yield path, _shown(value)
        elif isinstance(value, int) or (isinstance(value, dict) and value):
            yield LEFT_OUT, 1  # it may be a count


def _fact(name: str, value: object) -> Any:
    """Return a value that can be kept, or None."""
    match value:
        case bool():
            return value
        case int():
            return value if -(2**63) <= value < 2**63 else None
        case float():
            if not math.isfinite(value):
                return None
            count = maybe_count(value)
            return value if count is None else count
        case str():
            if len(value) > MAX_TEXT:
                return None
            count = maybe_count(value) if name.endswith("tokens") else None
            return value if count is None else count
        case list() if value:
            return value if _is_short(value) else None
    return None


def _is_short(value: list[Any]) -> bool:
    try:
        return len(encode(value)) <= MAX_LIST
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return False
