"""Conditions of SQL for both databases, with their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from aibridge_addon.recording.queries import Queries
from aibridge_addon.recording.rows import timestamp


def matching(rows: Queries, column: str, patterns: Sequence[str], parameters: dict[str, Any]) -> list[str]:
    """Return the condition that a column has one of these values, or matches one of these patterns, if any."""
    alternatives = []
    for pattern in patterns:
        name = parameter(len(parameters))
        if rows.postgres:
            parameters[name] = pattern.translate(TO_LIKE)
            alternatives.append(f"{column} like :{name} escape '!'")
        else:
            parameters[name] = pattern.replace("[", "[[]")
            alternatives.append(f"{column} glob :{name}")
    return [f"({' or '.join(alternatives)})"] if alternatives else []


def within(
    rows: Queries, column: str, since: datetime | None, until: datetime | None, parameters: dict[str, Any]
) -> list[str]:
    """Return the conditions that a column's time is in a period, as far as that is limited."""
    conditions = []
    for name, operator, at in (("since", ">=", since), ("until", "<", until)):
        if at is not None:
            parameters[name] = timestamp(at)
            conditions.append(f"{column} {operator} {moment(rows, name)}")
    return conditions


def moment(rows: Queries, name: str) -> str:
    """Return the expression of a parameter that is a time."""
    return f"cast(:{name} as timestamptz)" if rows.postgres else f":{name}"


def parameter(number: int) -> str:
    """Return the name of a numbered parameter. Names are letters only."""
    return "p_" + "".join(chr(ord("a") + int(digit)) for digit in str(number))


TO_LIKE = MappingProxyType(str.maketrans({"*": "%", "?": "_", "%": "!%", "_": "!_", "!": "!!"}))
