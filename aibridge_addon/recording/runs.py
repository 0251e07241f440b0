"""What one instance of the bridge has recorded: the usage of `aibridge run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from aibridge_addon.recording.hourly_usage import MODEL
from aibridge_addon.recording.queries import Queries
from aibridge_addon.recording.reports import COUNTS, Usage, total, usage_of
from aibridge_addon.recording.rows import timestamp

OURS = "interception.started_at >= :since and interception.instance_id = :instance"
TOKENS = f"""
select coalesce(t.model, '') as model, coalesce(interception.billing, '') as billing,
    {", ".join(f"{{sum}}(t.{name}) as {name}" for name in COUNTS)}, sum(t.cost_usd) as cost_usd,
    sum(case when t.cost_usd is null then 1 else 0 end) as unpriced
from aibridge_interceptions as interception join aibridge_token_usages as t on t.interception_id = interception.id
where {OURS} group by 1, 2
"""  # noqa: S608 (names are ours)
REQUESTS = f"""
select model, '' as billing, count(*) as interceptions, sum(failed) as failed from (
    select coalesce({MODEL}, '') as model, case when interception.status = 'failed' then 1 else 0 end as failed
    from aibridge_interceptions as interception where {OURS}
) as found group by 1
"""  # noqa: S608 (names are ours)
CALLS = f"""
select model, tool, server_name, injected, count(*) as calls, sum(failed) as failed from (
    select coalesce({MODEL}, '') as model, u.tool, coalesce(u.server_name, '') as server_name, u.injected,
        case when u.invocation_error is not null then 1 else 0 end as failed
    from aibridge_interceptions as interception join aibridge_tool_usages as u on u.interception_id = interception.id
    where {OURS}
) as found group by 1, 2, 3, 4
"""  # noqa: S608 (names are ours)


@dataclass(slots=True)
class Calls:
    """Calls of one tool."""

    tool: str
    server_name: str
    injected: bool
    calls: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class RunUsage:
    models: dict[str, Usage]
    """By the model that answered. Empty: not known."""
    injected_calls: dict[str, int]
    """By the model that answered."""
    tools: list[Calls] = field(default_factory=list)
    """The tool with the most calls first."""

    @property
    def whole(self) -> Usage:
        return total(self.models.values())


def of_instance(rows: Queries, instance_id: str, since: datetime) -> RunUsage:
    """Return all usage of an instance. Raises DatabaseUnavailable.

    `since`: any time before the instance's first request. It keeps the database from reading older rows.
    """
    parameters = {"instance": instance_id, "since": timestamp(since)}
    models: dict[str, Usage] = {}
    for sql in (TOKENS, REQUESTS):
        # SQLite's sum() fails where integers are too large, which providers can choose.
        for row in rows.select(sql.format(sum="sum" if rows.postgres else "total"), parameters):
            models.setdefault(row["model"], Usage()).add(usage_of(row))
    injected: dict[str, int] = {}
    tools: dict[tuple[str, str, bool], Calls] = {}
    for row in rows.select(CALLS, parameters):
        key = (row["tool"], row["server_name"], bool(row["injected"]))
        calls = tools.setdefault(key, Calls(*key))
        calls.calls += int(row["calls"])
        calls.failed += int(row["failed"])
        if row["injected"]:
            injected[row["model"]] = injected.get(row["model"], 0) + int(row["calls"])
    return RunUsage(models, injected, sorted(tools.values(), key=lambda each: (-each.calls, each.tool)))
