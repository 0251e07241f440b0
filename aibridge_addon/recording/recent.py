"""How the newest requests went: times and errors of those that ended last, and what has no price."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aibridge_addon.recording.conditions import within
from aibridge_addon.recording.queries import Queries
from aibridge_addon.recording.reports import usage_of

NEWEST = 1000
"""Requests of which times and errors are read."""
ENDED = f"""
select status, error_type, http_status, time_to_first_byte_ms, started_at, ended_at
from aibridge_interceptions where ended_at is not null order by ended_at desc limit {NEWEST}
"""  # noqa: S608 (a number of ours)
UNPRICED = 500
"""Maximum number of different reasons that are listed."""


@dataclass(frozen=True, slots=True)
class Recent:
    """The newest requests that have ended. Times are seconds; None: no request has one."""

    requests: int
    failed: int
    running: int
    first_byte: tuple[float, float] | None
    """Median and 95th percentile of the time to the first byte."""
    duration: tuple[float, float] | None
    errors: list[tuple[str, int | None, int]]
    """Error type, HTTP status and number, the most frequent first."""


def recent(rows: Queries) -> Recent:
    """Raises DatabaseUnavailable."""
    ended = list(rows.select(ENDED))
    (running,) = rows.select("select count(*) as n from aibridge_interceptions where ended_at is null")
    errors = Counter((row["error_type"], row["http_status"]) for row in ended if row["error_type"])
    return Recent(
        requests=len(ended),
        failed=sum(row["status"] == "failed" for row in ended),
        running=running["n"],
        first_byte=_quantiles(
            [row["time_to_first_byte_ms"] / 1000 for row in ended if row["time_to_first_byte_ms"] is not None]
        ),
        duration=_quantiles([_seconds(row) for row in ended]),
        errors=[(type_, status, count) for (type_, status), count in errors.most_common(20)],
    )


def change(rows: Queries) -> str:
    """Return a text that is another one after a request has begun or ended. Raises DatabaseUnavailable."""
    (row,) = rows.select(
        "select (select max(started_at) from aibridge_interceptions) as began,"
        " (select max(ended_at) from aibridge_interceptions) as ended"
    )
    return f"{row['began']} {row['ended']}"


def unpriced(rows: Queries, *, since: datetime | None = None, until: datetime | None = None) -> list[dict[str, Any]]:
    """Return token rows without a cost, summed up by provider, host, model and reason, the largest first.

    Raises DatabaseUnavailable.
    """
    parameters: dict[str, Any] = {}
    conditions = ["t.cost_usd is null", "i.id = t.interception_id"]
    conditions += within(rows, "t.created_at", since, until, parameters)
    total = "sum" if rows.postgres else "total"
    sql = f"""
        select
            i.provider_name, i.upstream_host, t.model, t.unpriced as reason, count(*) as rows, '' as billing,
            {total}(t.input_tokens) as input_tokens, {total}(t.cache_read_input_tokens) as cache_read_input_tokens,
            {total}(t.cache_write_input_tokens) as cache_write_input_tokens,
            {total}(t.output_tokens) as output_tokens
        from aibridge_token_usages as t cross join aibridge_interceptions as i where {" and ".join(conditions)}
        group by i.provider_name, i.upstream_host, t.model, t.unpriced order by count(*) desc, t.model limit {UNPRICED}
    """  # noqa: S608 (names are ours, values are parameters)
    names = ("provider_name", "upstream_host", "model", "reason", "rows")
    return [{name: row[name] for name in names} | {"usage": usage_of(row)} for row in rows.select(sql, parameters)]


def _seconds(row: dict[str, Any]) -> float:
    took = datetime.fromisoformat(row["ended_at"]) - datetime.fromisoformat(row["started_at"])
    return max(0.0, took.total_seconds())


def _quantiles(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the median and the 95th percentile: of the values, those that so many are not above."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2], ordered[min(len(ordered) - 1, -(-len(ordered) * 95 // 100) - 1)]
