"""Read token counts, and everything beside them that decides a price."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import msgspec

from aibridge_addon.dialects.base import Usage
from aibridge_addon.wire.json_object import encode
from aibridge_addon.wire.json_values import as_count, maybe_count

MAX_COUNTS = 64
"""Maximum number of additional members kept of one answer. The provider chooses their names."""
MAX_DEPTH = 4
MAX_NAME = 128
"""Characters. Members with longer joined names are dropped."""
MAX_TEXT = 256
"""Characters. Longer texts are dropped: they decide no price."""
MAX_LIST = 4096
"""Bytes of JSON. Longer lists are dropped."""
BESIDE = (
    *("service_tier", "speed", "inference_geo", "tool_usage", "copilot_usage"),
    *("serviceTier", "performanceConfig", "cost", "cost_details"),
)
"""Members that decide a price and stand beside `usage` in some answers."""


def read_counts(members: Mapping[str, Any], names: Mapping[str, str]) -> Usage:
    """Return the counts of a usage object. `names` has the member's name for each field of `Usage`.

    A count that cannot be read is 0, and the usage is not complete.
    """
    given = {field: members.get(name) for field, name in names.items()}
    return Usage(
        input_tokens=as_count(given.get("input_tokens")),
        output_tokens=as_count(given.get("output_tokens")),
        cache_read_input_tokens=as_count(given.get("cache_read_input_tokens")),
        cache_write_input_tokens=as_count(given.get("cache_write_input_tokens")),
        complete=are_counts(given.values()),
    )


def are_counts(values: Iterable[object]) -> bool:
    """Return whether all values that are given are counts."""
    return all(value is None or maybe_count(value) is not None for value in values)


def facts_in(members: Mapping[str, Any], known: Collection[str] = ()) -> dict[str, Any]:
    """Return the other members of a usage object: numbers, texts, booleans and short lists.

    Names of nested members are joined with dots.
    """
    found = ((name, fact) for name, fact in _facts(members, "", MAX_DEPTH) if name not in known)
    return dict(islice(found, MAX_COUNTS))


def facts_beside(holder: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands beside `usage` in an answer, a chunk or a choice, and decides a price."""
    return facts_in({name: holder[name] for name in BESIDE if name in holder})


def joined(*facts: Mapping[str, Any]) -> dict[str, Any]:
    """Join facts up to `MAX_COUNTS`. Later values replace earlier ones."""
    merged: dict[str, Any] = {}
    for part in facts:
        merged |= part
    return dict(islice(merged.items(), MAX_COUNTS))


def _facts(members: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in members.items():
        path = prefix + name
        if len(path) > MAX_NAME:
            continue
        if isinstance(value, dict):
            if depth:
                yield from _facts(value, f"{path}.", depth - 1)
        elif (fact := _fact(name, value)) is not None:
            yield path, fact


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
