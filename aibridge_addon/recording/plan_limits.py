"""Read the limits of plans: for each credential and window, what its provider said last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from aibridge_addon.recording.conditions import matching, within
from aibridge_addon.recording.queries import Queries, has_table

TABLE = "aibridge_plan_limits"
COLUMNS = (
    *("provider_name", "credential_hint", "initiator_id", "window_name", "used_ratio", "limit_value", "remaining"),
    *("resets_at", "observed_at", "metadata"),
)
WINDOW = "provider_name, credential_hint, window_name"
"""What one limit is of."""


def latest(
    rows: Queries,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    actors: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return the newest row of each window that was observed in the period, with `COLUMNS`.

    `metadata` is decoded. `actors`: names or patterns of those who use a credential. Raises DatabaseUnavailable.
    """
    if not has_table(rows, TABLE):
        return []
    parameters: dict[str, Any] = {}
    conditions = within(rows, "observed_at", since, until, parameters)
    conditions += matching(rows, "initiator_id", actors, parameters)
    where = f"where {' and '.join(conditions)}" if conditions else ""
    sql = f"""
        select {", ".join(COLUMNS)} from (
            select *, row_number() over (partition by {WINDOW} order by observed_at desc, id desc) as age
            from {TABLE} {where}
        ) as ranked where age = 1 order by {WINDOW}
    """  # noqa: S608 (names are ours)
    return [row | {"metadata": _decoded(row["metadata"])} for row in rows.select(sql, parameters)]


def _decoded(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
