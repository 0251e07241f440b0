"""Read decoded JSON leniently: return a value of the expected type, or an empty one."""

from __future__ import annotations

from typing import Any, TypeGuard


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
    """Return `value` if it is a non-negative integer that fits into a database column, or else 0."""
    return value if is_count(value) and value >= 0 else 0


def is_count(value: object) -> TypeGuard[int]:
    """Return whether `value` is an integer that fits into a database column. Booleans are not integers."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
