"""Read one snapshot of what runs now and what was, for a screen that is read again every second.

All queries are bounded: lists have a limit, sums of the day come from the hourly usage, and all else reads the rows of
the last hour by an index of time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from aibridge_addon.recording.conditions import moment, parameter
from aibridge_addon.recording.instances import SILENCE
from aibridge_addon.recording.plan_limits import latest
from aibridge_addon.recording.queries import Queries
from aibridge_addon.recording.reports import COUNTS, HOUR, Question, Usage, total, usage, usage_of
from aibridge_addon.recording.rows import timestamp

RUNNING = 100
"""Maximum number of interceptions in flight that a snapshot lists."""
ENDED = 100
"""Maximum number of interceptions that have ended."""
ERRORS = 20
"""Maximum number of kinds of errors."""
RECENT = timedelta(minutes=10)
"""The time from which the burn rate is computed."""
LIMITS_OF = timedelta(days=8)
"""Limits that were named longer ago are not shown: the windows of plans have up to seven days."""
INTERCEPTION = ("id", "initiator_id", "client", "provider_name", "model", "session_id", "started_at")
END = ("ended_at", "status", "http_status", "error_type", "time_to_first_byte_ms")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the database says at one moment."""

    at: datetime
    since: datetime
    """When the day began in the time zone of the question."""
    in_flight: int
    """Number of interceptions that have not ended."""
    running: Sequence[Mapping[str, Any]]
    """The oldest of them: `INTERCEPTION`, tokens of the turns that have ended, and `silent`: whether the process that
    they belong to gives no sign of life. Those come last."""
    ended: Sequence[Mapping[str, Any]]
    """Interceptions that have ended, the last one first: `INTERCEPTION`, `END`, and their tokens."""
    today: Usage
    models: Mapping[str, Usage]
    """Usage of the day by model."""
    actors: Mapping[str, Usage]
    recent: Usage
    """Usage of the time `RECENT`."""
    errors: Sequence[Mapping[str, Any]]
    """Failed interceptions of the last hour: `error_type`, `http_status`, `provider_name`, `failed`, `last_at`."""
    limits: Sequence[Mapping[str, Any]]
    """What providers said last of each window of a plan, the most used one first. Empty if no provider said anything,
    or if the database has no such table."""


def snapshot(rows: Queries, now: datetime, zone: ZoneInfo) -> Snapshot:
    """Return what runs now and what was. Raises DatabaseUnavailable.

    `zone`: the day of `now` in this time zone is today.
    """
    since = datetime.combine(now.astimezone(zone).date(), time(), zone).astimezone(UTC)
    models = _by(rows, "model", since, zone)
    (counted,) = rows.select("select count(*) as found from aibridge_interceptions where ended_at is null")
    return Snapshot(
        now,
        since,
        int(counted["found"]),
        _running(rows, now),
        _ended(rows),
        total(models.values()),
        models,
        _by(rows, "initiator_id", since, zone),
        total(usage(rows, Question((), zone, now - RECENT)).values()),
        _errors(rows, now),
        _limits(rows, now),
    )


def per_hour(recent: Usage) -> Usage:
    """Return the usage of an hour that is like the time `RECENT`."""
    times = HOUR / RECENT
    hour = Usage(costs={billing: cost * times for billing, cost in recent.costs.items()}, unpriced=recent.unpriced)
    for name in ("interceptions", "failed", *COUNTS):
        setattr(hour, name, round(getattr(recent, name) * times))
    return hour


def _by(rows: Queries, key: str, since: datetime, zone: ZoneInfo) -> dict[str, Usage]:
    return {name: found for (name,), found in usage(rows, Question((key,), zone, since)).items()}


def _running(rows: Queries, now: datetime) -> list[dict[str, Any]]:
    columns = ", ".join(f"i.{name}" for name in INTERCEPTION)
    silent = f"n.heartbeat_at < {moment(rows, 'silent')} or i.instance_id is not null and n.id is null"
    sql = f"""
        select {columns}, case when {silent} then 1 else 0 end as silent
        from aibridge_interceptions as i left join aibridge_instances as n on n.id = i.instance_id
        where i.ended_at is null order by silent, i.started_at, i.id limit {RUNNING}
    """  # noqa: S608 (names are ours, values are parameters)
    found = list(rows.select(sql, {"silent": timestamp(now - SILENCE)}))
    return _with_tokens(rows, [row | {"silent": bool(row["silent"])} for row in found])


def _ended(rows: Queries) -> list[dict[str, Any]]:
    sql = f"""
        select {", ".join((*INTERCEPTION, *END))} from aibridge_interceptions
        where ended_at is not null order by ended_at desc, id desc limit {ENDED}
    """  # noqa: S608 (names are ours)
    return _with_tokens(rows, rows.select(sql))


def _with_tokens(rows: Queries, interceptions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the sums of token rows, and the number of turns that have any."""
    found = {row["id"]: row for row in interceptions}
    if not found:
        return []
    ids = {parameter(number): id for number, id in enumerate(found)}
    listed = ", ".join(f"cast(:{name} as uuid)" if rows.postgres else f":{name}" for name in ids)
    function = "sum" if rows.postgres else "total"
    sums = ", ".join(f"{function}({name}) as {name}" for name in (*COUNTS, "cost_usd"))
    sql = f"""
        select interception_id, max(turn) as turns, {sums}, count(*) - count(cost_usd) as unpriced, '' as billing
        from aibridge_token_usages where interception_id in ({listed}) group by interception_id
    """  # noqa: S608 (names are ours, values are parameters)
    sums_of = {row["interception_id"]: row for row in rows.select(sql, ids)}
    return [row | _tokens(sums_of.get(id)) for id, row in found.items()]


def _tokens(row: Mapping[str, Any] | None) -> dict[str, Any]:
    if row is None:
        return {"turns": 0, **dict.fromkeys(COUNTS, 0), "cost_usd": None}
    sums = usage_of(row)
    return {"turns": int(row["turns"] or 0), **{name: getattr(sums, name) for name in COUNTS}, "cost_usd": sums.cost()}


def _errors(rows: Queries, now: datetime) -> list[dict[str, Any]]:
    sql = f"""
        select error_type, http_status, provider_name, count(*) as failed, max(ended_at) as last_at
        from aibridge_interceptions where ended_at >= {moment(rows, "since")} and status = 'failed'
        group by error_type, http_status, provider_name order by max(ended_at) desc limit {ERRORS}
    """  # noqa: S608 (names are ours, values are parameters)
    return list(rows.select(sql, {"since": timestamp(now - HOUR)}))


def _limits(rows: Queries, now: datetime) -> list[dict[str, Any]]:
    """Return the limits that were named within the longest window, the fullest first."""
    return sorted(latest(rows, since=now - LIMITS_OF), key=lambda row: -(row["used_ratio"] or 0.0))
