"""Read decoded JSON leniently: return a value of the expected type, or an empty one."""

from __future__ import annotations

import re
from typing import Any

MAX_COUNT = 2**63 - 1
"""The largest integer that fits into a database column."""
_digits = re.compile(r"([0-9]{1,19})(?:\.0*)?").fullmatch


def as_dict(value: object) -> dict[str, Any]:
    """Return `value` if it is a JSON object, or else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return `value` if it is a JSON array, or else an empty one."""
    return value if isinstance(value, list) else []


def as_text(value: object) -> str:
    """Return `value` if it is a string, or else an empty one."""
    return value if isinstance(value, str) else ""


def as_count(value: object) -> int:
    """Return `value` as a count (see `maybe_count`), or 0 if it is none."""
    return maybe_count(value) or 0


def maybe_count(value: object) -> int | None:
    """Return `value` as a non-negative integer that fits into a database column, or None if it is none.

    Some servers send counts as floats (`1100.0`) or as texts (`"1100"`). Booleans are no counts.
    """
    if isinstance(value, str) and len(value) < 40:
        found = _digits(value.strip())
        value = int(found[1]) if found else None
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
        return value
    return None
