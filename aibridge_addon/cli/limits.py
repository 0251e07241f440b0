"""`aibridge report limits`: what is used of the plans' limits, as the providers said it last."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from aibridge_addon.cli import database, output, period
from aibridge_addon.cli.output import Column, Row, name
from aibridge_addon.cli.period import Period
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.plan_limits import COLUMNS, latest
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.records import utc_now
from aibridge_addon.telemetry.log.text import count, short_count

NOTHING = "No answer of this period has named a limit. Providers name them in headers: see docs/limits.md."
BINDING = "* This window decides about the next request."


def run(arguments: argparse.Namespace) -> int:
    for option in ("by", "breakdown", "model"):
        if getattr(arguments, option):
            arguments.command.error(f"limits: --{option} has no effect, because a row is a window of a credential")
    wanted = period.period_of(arguments)
    settings = database.settings_of(arguments)
    with queries(settings) as rows:
        found = latest(rows, since=wanted.since, until=wanted.until, actors=arguments.actor)
    if arguments.json:
        output.write_json({"rows": found, "totals": {}, **wanted.columns(), "database": str(settings.database)})
    elif arguments.csv:
        output.write_csv(({**row, "metadata": output.compact(row["metadata"])} for row in found), COLUMNS)
    elif found:
        _write_table(found, wanted)
    else:
        print(f"{_title(wanted)}\n\n{NOTHING}")
    return 0


def _title(wanted: Period) -> str:
    return f"Limits of plans as providers said them last, {wanted}, time zone {wanted.zone.key}"


def _write_table(rows: list[dict[str, Any]], wanted: Period) -> None:
    def text(column: str, title: str, *, wide_only: bool = False) -> Column:
        return Column(title, lambda row: name(row[column]), kind="name", wide_only=wide_only)

    def number(column: str, title: str) -> Column:
        def cell(row: Row) -> str:
            return "" if row[column] is None else count(round(row[column]))

        def short(row: Row) -> str:
            return "" if row[column] is None else short_count(round(row[column]))

        return Column(title, cell, short)

    has_counts = any(row["limit_value"] is not None or row["remaining"] is not None for row in rows)
    columns = [
        text("provider_name", "Provider"),
        text("credential_hint", "Credential", wide_only=True),
        text("initiator_id", "Seen for", wide_only=True),
        Column("Window", _window, kind="name"),
        Column("Used", lambda row: "" if row["used_ratio"] is None else f"{row['used_ratio']:.0%}"),
        *([number("remaining", "Left"), number("limit_value", "Limit")] if has_counts else []),
        Column("Status", partial(_status, timestamp(utc_now())), kind="name"),
        output.time_column("Resets", "resets_at", wanted.zone),
        output.time_column("Seen", "observed_at", wanted.zone),
    ]
    notes = [BINDING] if any(row["metadata"].get("representative") for row in rows) else []
    output.write_table(
        columns,
        rows,
        None,
        title=_title(wanted),
        notes=notes,
        bar=lambda row: min(1.0, row["used_ratio"] or 0.0),
        whole=1.0,
    )


def _window(row: Row) -> str:
    return name(row["window_name"]) + ("*" if row["metadata"].get("representative") else "")


def _status(now: str, row: Row) -> str:
    if row["resets_at"] is not None and row["observed_at"] < row["resets_at"] <= now:
        return "was reset"
    metadata = row["metadata"]
    return name(metadata.get("status")) if not metadata.get("unlimited") else "unlimited"
