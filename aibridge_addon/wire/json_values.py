"""Read decoded JSON leniently: a value of the expected type, or an empty one. Values from the wire have any type."""

from __future__ import annotations

from typing import Any, TypeGuard


def as_dict(value: object) -> dict[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """`value` if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def as_text(value: object) -> str:
    """`value` if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def as_count(value: object) -> int:
    """`value` if it is a non-negative integer that a database column can store, else 0."""
    return value if is_count(value) and value >= 0 else 0


def is_count(value: object) -> TypeGuard[int]:
    """Whether this is an integer that a database column can store; JSON's booleans are none."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
