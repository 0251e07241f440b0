"""`aibridge report`: tokens and costs by day, week, month, session, model, user, client, provider, or calls by tool."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from aibridge_addon.cli import budgets, database, limits, output, period, reprice
from aibridge_addon.cli.examples import examples
from aibridge_addon.cli.output import PART, Column, Row, name
from aibridge_addon.cli.period import Period
from aibridge_addon.config.errors import ConfigError, Problem, did_you_mean
from aibridge_addon.recording import reports
from aibridge_addon.recording.context import BYTES_PER_TOKEN, schemas
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.queries import Queries
from aibridge_addon.recording.reports import KEYS, PERIODS, Key, Question, Usage
from aibridge_addon.telemetry.log.text import duration

DESCRIPTION = """Show tokens and costs, or calls of tools. A token row counts when its answer ended, an interception
when it ended. Input is new input: cached tokens are apart. Amounts are US dollars."""


@dataclass(frozen=True, slots=True)
class Report:
    keys: tuple[str, ...]
    title: str


REPORTS: Mapping[str, Report] = MappingProxyType(
    {
        "daily": Report(("date",), "Usage by day"),
        "weekly": Report(("week",), "Usage by week (from Monday)"),
        "monthly": Report(("month",), "Usage by month"),
        "sessions": Report(reports.SESSION, "Usage by session"),
        "models": Report(("model",), "Usage by model"),
        "users": Report(("initiator_id",), "Usage by user"),
        "tools": Report((), "Calls by tool"),
        "clients": Report(("client",), "Usage by client"),
        "providers": Report(("provider_name",), "Usage by provider"),
        "budgets": Report((), "Budgets"),
        "limits": Report((), "Limits of plans"),
    }
)
BY: Mapping[str, str] = MappingProxyType(
    {key: key for key in KEYS}
    | {"day": "date", "user": "initiator_id", "actor": "initiator_id", "provider": "provider_name"}
    | {"session": "session_id", "agent": "agent_id", "type": "provider"}
)
"""What `--by` accepts, and the column that it means."""
TITLES: Mapping[str, str] = MappingProxyType(
    {"date": "Date", "week": "Week of", "month": "Month", "session_id": "Session", "initiator_id": "User"}
    | {"model": "Model", "client": "Client", "provider_name": "Provider", "billing": "Billing", "project": "Project"}
    | {"agent_id": "Agent", "provider": "Type", "upstream_host": "Host", "route": "Route"}
    | {"request_class": "Class", "credential_hint": "Credential"}
)
UNPRICED = "Unpriced token rows: {count:,}. Their cost is not known (n/a) and is part of no amount."
SUBSCRIPTION = "Subscription: what an API key would pay for the same tokens. It is not a bill."
OTHER = "Other: it is not known whether a key or a subscription pays."
OTHER_SESSIONS = "other sessions"
SESSIONS = 100
"""Sessions that a report lists. A list of all has to read all rows."""
SCHEMAS = f"Definitions of injected tools, in each request that has them, at {BYTES_PER_TOKEN} bytes a token:"
NOTHING = "There is nothing to show for this period."

EXAMPLES = examples(
    "aibridge report",
    "aibridge report users --since 2026-11-01",
    "aibridge report monthly --by user,project --csv > usage.csv",
    "aibridge report models --actor 'team-*' --json",
    "aibridge report --reprice --dry-run",
)


def add(commands: Any) -> None:
    command = commands.add_parser("report", help="show tokens and costs", description=DESCRIPTION, **EXAMPLES)
    what = f"what a row is: {', '.join(REPORTS)} (default: daily)"
    command.add_argument("report", nargs="?", metavar="REPORT", choices=REPORTS, default="daily", help=what)
    period.add_options(command)
    command.add_argument(
        "--by",
        metavar="COLUMN",
        action="append",
        default=[],
        help=f"split rows by this as well; may be repeated: {', '.join(sorted(BY))}",
    )
    command.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=SESSIONS,
        help=f"sessions: list the N newest, and the rest as one row; 0: list all (default: {SESSIONS})",
    )
    command.add_argument("--breakdown", action="store_true", help="show the models of each row below it")
    command.add_argument("--actor", metavar="NAME", action="append", default=[], help="only this user; * and ? match")
    command.add_argument("--model", metavar="NAME", action="append", default=[], help="only this model; * and ? match")
    command.add_argument(
        "--reprice", action="store_true", help="work out stored costs again, with the price list that is installed"
    )
    command.add_argument("--dry-run", action="store_true", help="with --reprice: compare costs, and write nothing")
    output.add_options(command)
    database.add_options(command)
    command.set_defaults(run=run, command=command)


def run(arguments: argparse.Namespace) -> int:
    if arguments.reprice:
        return reprice.run(arguments)
    if arguments.dry_run:
        arguments.command.error("--dry-run needs --reprice")
    if arguments.limit < 0:
        arguments.command.error("--limit: a number from 0 on is needed")
    if arguments.report == "budgets":
        return budgets.run(arguments)
    if arguments.report == "limits":
        return limits.run(arguments)
    wanted = period.period_of(arguments)
    report = REPORTS[arguments.report]
    added = _columns_of(arguments.by)
    keys = tuple(dict.fromkeys((*report.keys, *added)))
    settings = database.settings_of(arguments)
    asked = Question(keys, wanted.zone, wanted.since, wanted.until, tuple(arguments.actor), tuple(arguments.model))
    if arguments.report == "tools":
        with queries(settings) as rows:
            shown = _calls(reports.tools(rows, asked), keys)
            cost = schemas(rows, since=wanted.since, until=wanted.until, actors=arguments.actor, models=arguments.model)
        shown = replace(shown, schemas=[each.columns() for each in cost])
    else:
        with queries(settings) as rows:
            shown = _usage(rows, asked, breakdown=arguments.breakdown, sessions=arguments.limit or None)
    _write(arguments, shown, wanted, title=_title(report, added, arguments, wanted), database=str(settings.database))
    return 0


@dataclass(frozen=True, slots=True)
class Shown:
    """Rows as they are printed."""

    rows: Sequence[Row]
    totals: Row
    columns: Sequence[str]
    """Names of the rows' columns, in their order."""
    keys: Sequence[str]
    schemas: Sequence[Row] = ()
    """What the definitions of each server's tools cost."""


def _columns_of(by: Iterable[str]) -> list[str]:
    """Raises ConfigError."""
    names = [part.strip() for value in by for part in value.split(",")]
    for part in names:
        if part not in BY:
            raise ConfigError([Problem("--by", f'"{part}"', ", ".join(sorted(BY)) + did_you_mean(part, list(BY)))])
    return [BY[part] for part in names]


# --- usage -----------------------------------------------------------------------------------------------------------


def _usage(rows: Queries, asked: Question, *, breakdown: bool, sessions: int | None) -> Shown:
    parts: dict[Key, dict[str, Usage]] = {}
    if breakdown and "model" not in asked.keys:
        within = reports.usage(rows, Question(**{**_members(asked), "keys": (*asked.keys, "model")}))
        for (*key, model), usage in within.items():
            parts.setdefault(tuple(key), {})[model] = usage
        found = {key: reports.total(models.values()) for key, models in parts.items()}
    elif asked.keys == reports.SESSION and sessions is not None:
        found = reports.sessions(rows, asked, sessions)
    else:
        found = reports.usage(rows, asked)
    timed = "session_id" in asked.keys
    made = [
        _row(asked.keys, key, found[key], timed=timed)
        | (
            {"breakdown": [{"model": model, **usage.columns()} for model, usage in _by_cost(parts[key])]}
            if parts
            else {}
        )
        for key in _sorted(found, asked.keys)
    ]
    totals = reports.total(found.values()).columns()
    times = ("started_at", "ended_at") if timed else ()
    return Shown(made, totals, (*asked.keys, *times, *totals), asked.keys)


def _members(asked: Question) -> dict[str, Any]:
    return {field: getattr(asked, field) for field in Question.__slots__}


def _row(keys: Sequence[str], key: Key, usage: Usage, *, timed: bool) -> dict[str, Any]:
    times = {"started_at": usage.started_at, "ended_at": usage.ended_at} if timed else {}
    return {**dict(zip(keys, key, strict=True)), **times, **usage.columns()}


def _by_cost(found: Mapping[str, Usage]) -> list[tuple[str, Usage]]:
    return sorted(found.items(), key=lambda item: (*_weight(item[1]), item[0]))


def _weight(usage: Usage) -> tuple[float, int, int]:
    """Return what puts the largest usage first."""
    return -(usage.cost() or 0.0), -usage.output_tokens, -usage.interceptions


def _sorted(found: Mapping[Key, Usage], keys: Sequence[str]) -> list[Key]:
    """Return periods in their order, the newest session first, and all else by its cost."""
    groups: dict[Key, Usage] = {}
    for key, usage in found.items():
        for depth in range(1, len(key) + 1):
            groups.setdefault(key[:depth], Usage()).add(usage)

    def order(key: Key) -> list[Any]:
        if keys[:1] == ("session_id",):
            return [key[0] is None, -_seconds(found[key].ended_at), [str(part) for part in key]]
        return [
            str(key[depth]) if name in PERIODS else (_weight(groups[key[: depth + 1]]), str(key[depth]))
            for depth, name in enumerate(keys)
        ]

    return sorted(found, key=order)


def _seconds(moment: str | None) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp() if moment else 0.0


# --- calls -----------------------------------------------------------------------------------------------------------


def _calls(found: Mapping[Key, Mapping[str, int]], keys: Sequence[str]) -> Shown:
    names = ("tool", "server_name", "injected", *keys)
    made = [dict(zip(names, key, strict=True)) | _counted(sums) for key, sums in found.items()]
    made.sort(
        key=lambda row: (
            [row[key] for key in keys if key in PERIODS],
            -row["calls"],
            [str(row[column]) for column in names],
        )
    )
    totals = _counted({column: sum(sums[column] for sums in found.values()) for column in reports.CALLS})
    return Shown(made, totals, (*names, *totals), names)


def _counted(sums: Mapping[str, int]) -> dict[str, Any]:
    mean = round(sums["duration_ms"] / sums["timed"]) if sums["timed"] else None
    return {"calls": sums["calls"], "failed": sums["failed"], "duration_ms": mean}


# --- output ----------------------------------------------------------------------------------------------------------


def _title(report: Report, added: Sequence[str], arguments: argparse.Namespace, wanted: Period) -> str:
    parts = [report.title, *(f"and {TITLES[column].lower()}" for column in added)]
    filters = [
        f"{option} {', '.join(values)}" for option in ("actor", "model") if (values := getattr(arguments, option))
    ]
    return name("; ".join([f"{' '.join(parts)}, {wanted}, time zone {wanted.zone.key}", *filters]))


def _write(arguments: argparse.Namespace, shown: Shown, wanted: Period, *, title: str, database: str) -> None:
    if arguments.json:
        document = {"rows": shown.rows, "totals": shown.totals, **wanted.columns(), "database": database}
        if arguments.report == "tools":
            document["schemas"] = shown.schemas
        return output.write_json(document)
    flat = list(_flat(shown))
    if arguments.csv:
        columns = list(shown.columns)
        if any(PART in row for row in flat):
            columns.insert(len(shown.keys), "model")
            flat = [row for row in flat if PART in row]
        return output.write_csv(flat, columns)
    if not shown.rows:
        print("\n".join([f"{title}\n\n{NOTHING}", *_schema_notes(shown.schemas)]))
        return None
    if arguments.report == "tools":
        return output.write_table(
            _tool_columns(shown, wanted),
            flat,
            shown.totals,
            title=title,
            notes=_schema_notes(shown.schemas),
            bar=lambda row: float(row["calls"]),
        )
    costs = any(row["cost_usd"] for row in shown.rows)
    return output.write_table(
        _usage_columns(shown, wanted),
        flat,
        shown.totals,
        title=title,
        notes=_notes(shown.totals),
        bar=lambda row: float(row["cost_usd"] or 0) if costs else float(row["output_tokens"]),
    )


def _flat(shown: Shown) -> Iterable[Row]:
    """Yield each row, and after it those of its breakdown."""
    for row in shown.rows:
        yield row
        for part in row.get("breakdown", ()):
            yield {**row, **part, PART: True}


def _notes(totals: Row) -> list[str]:
    notes = [UNPRICED.format(count=totals["unpriced"])] if totals["unpriced"] else []
    notes += [SUBSCRIPTION] if totals["subscription_cost_usd"] != 0 else []
    return notes + ([OTHER] if totals["other_cost_usd"] != 0 else [])


def _schema_notes(found: Sequence[Row]) -> list[str]:
    """Return what the definitions of each server's tools cost in each request."""
    notes = [
        f"{name(row['server_name'])}: about {row['schema_tokens']:,} tokens ({row['schema_bytes']:,} bytes)"
        for row in found
    ]
    return [SCHEMAS, *notes] if notes else []


def _usage_columns(shown: Shown, wanted: Period) -> list[Column]:
    totals = shown.totals
    columns = _key_columns(shown)
    if "ended_at" in shown.columns:
        columns.append(output.time_column("Last call", "ended_at", wanted.zone))
    columns.append(output.count_column("Requests", "interceptions", wide_only=True))
    if totals["failed"]:
        columns.append(output.count_column("Failed", "failed", wide_only=True))
    columns += [*output.token_columns(), *output.cost_columns(totals, shown.rows)]
    if totals["unpriced"]:
        columns.append(output.count_column("Un-\npriced", "unpriced"))
    return columns


def _key_columns(shown: Shown) -> list[Column]:
    """Return the columns of the keys. The first of them has the name of the last line, and those of a breakdown."""
    first, *others = shown.keys

    def lead(row: Row) -> str:
        return "Total" if row is shown.totals else f"  {name(row['model'])}" if row.get(PART) else named(row[first])

    def named(value: object) -> str:
        return OTHER_SESSIONS if first == "session_id" and value is None else name(value)

    def other(column: str) -> Column:
        return Column(
            TITLES.get(column, column),
            lambda row: "" if row is shown.totals or row.get(PART) else name(row[column]),
            kind="name",
            wide_only=column == "client" and first == "session_id",
        )

    lead_kind: Literal["name", "time"] = "time" if first in PERIODS else "name"
    return [Column(TITLES.get(first, first), lead, kind=lead_kind), *map(other, others)]


def _tool_columns(shown: Shown, wanted: Period) -> list[Column]:
    def key(title: str, column: str) -> Column:
        return Column(title, lambda row: "" if row is shown.totals else name(row[column]), kind="name")

    return [
        Column("Tool", lambda row: "Total" if row is shown.totals else name(row["tool"]), kind="name"),
        key("Server", "server_name"),
        Column(
            "Kind", lambda row: ("injected" if row["injected"] else "client") if "injected" in row else "", None, "name"
        ),
        *(key(TITLES[column], column) for column in shown.keys[3:]),
        output.count_column("Calls", "calls"),
        output.count_column("Failed", "failed"),
        Column("Mean time", lambda row: "" if row["duration_ms"] is None else duration(row["duration_ms"] / 1000)),
    ]
