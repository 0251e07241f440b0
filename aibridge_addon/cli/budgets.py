"""`aibridge report budgets`: what is spent of each budget in its current period."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import uuid4

from aibridge_addon.cli import database, output, period
from aibridge_addon.cli.output import Column, Row, name
from aibridge_addon.cli.period import Period
from aibridge_addon.config.budgets import Budget
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.system_user import operating_system_user
from aibridge_addon.interception.accounts import Sums, Window
from aibridge_addon.interception.actors import ActorResolver
from aibridge_addon.interception.budgets import Budgets
from aibridge_addon.recording.budgets import SILENT
from aibridge_addon.recording.database import budget_store
from aibridge_addon.recording.preparation import Preparation
from aibridge_addon.records import utc_now
from aibridge_addon.telemetry.log.text import count, local, money, short_count, short_money

COLUMNS = (
    *("name", "per", "subject", "period", "timezone", "since", "resets_at"),
    *("unit", "spent", "reserved", "limit", "used", "unpriced", "over"),
)
NOTHING = "No budgets are configured. See docs/budgets.md."
NO_FILE = "Budgets are in a configuration file: name it by --config or AIBRIDGE_CONFIG."
UNPRICED = "Unpriced token rows: {count:,}. Their cost is not known and is not part of what is spent."
RESERVED = "Reserved: what requests in flight are expected to use."


def run(arguments: argparse.Namespace) -> int:
    for option in ("since", "until", "by", "breakdown", "actor", "model"):
        if getattr(arguments, option):
            arguments.command.error(
                f"budgets: --{option} has no effect, because a row is a budget in its current period"
            )
    wanted = period.period_of(arguments)
    settings = database.settings_of(arguments)
    rows = current(settings, utc_now) if settings.budgets else []
    if arguments.json:
        output.write_json({"rows": rows, "totals": {}, **wanted.columns(), "database": str(settings.database)})
    elif arguments.csv:
        output.write_csv(rows, COLUMNS)
    else:
        title = f"Budgets in their current periods, time zone {wanted.zone.key}"
        if rows:
            _write_table(rows, wanted, title)
        else:
            print(f"{title}\n\n{NOTHING if arguments.config else NO_FILE}")
    return 0


def current(settings: Settings, now: Callable[[], datetime]) -> list[dict[str, Any]]:
    """Return a row for each budget and each of its subjects, the most used one first. Raises DatabaseUnavailable."""
    actors = ActorResolver(settings.actor, system_user=operating_system_user())
    budgets = Budgets(
        settings.budgets,
        actors.groups_of,
        now=now,
        emit=lambda _: None,
        warn=lambda _event, _state: None,
        recorded_name=Preparation(settings.recording).recorded_name,
    )
    store = budget_store(settings, str(uuid4()))  # the id of no instance: all usage is that of others
    try:
        windows = budgets.windows()
        spent = {
            calendar: list(store.spent(*window, requests=budgets.counts_requests, groups=budgets.counts_groups))
            for calendar, window in windows.items()
        }
        reserved = store.reserved(now() - SILENT)
    finally:
        store.close()
    sums = budgets.total(spent)
    rows = []
    for budget in settings.budgets:
        window = windows[budget.period, budget.timezone]
        subjects = {subject for place in (sums, reserved) for name, subject in place if name == budget.name}
        found = [
            _row(budget, subject, window, sums.get((budget.name, subject)), reserved.get((budget.name, subject), 0.0))
            for subject in sorted(subjects)
        ]
        rows += sorted(found, key=lambda row: -row["used"]) or [_row(budget, None, window, None, 0.0)]
    return rows


def _row(budget: Budget, subject: str | None, window: Window, sums: Sums | None, reserved: float) -> dict[str, Any]:
    spent = sums.of(budget.unit) if sums is not None else 0
    digits = 6 if budget.unit == "usd" else None
    return {
        "name": budget.name,
        "per": budget.per,
        "subject": subject,
        "period": budget.period,
        "timezone": str(budget.timezone),
        "since": window.start.astimezone(budget.timezone).isoformat(),
        "resets_at": window.end.astimezone(budget.timezone).isoformat(),
        "unit": budget.unit,
        "spent": round(spent, digits),
        "reserved": round(reserved, digits),
        "limit": budget.limit,
        "used": round(spent / budget.limit, 6),
        "unpriced": sums.unpriced if sums is not None else 0,
        "over": budget.over,
    }


def _write_table(rows: list[dict[str, Any]], wanted: Period, title: str) -> None:
    def text(column: str, title: str, *, wide_only: bool = False) -> Column:
        return Column(title, lambda row: name(row[column]), kind="name", wide_only=wide_only)

    def amount(column: str, title: str) -> Column:
        def whole(row: Row) -> str:
            return money(row[column], 2) if row["unit"] == "usd" else count(round(row[column]))

        def short(row: Row) -> str:
            return short_money(row[column]) if row["unit"] == "usd" else short_count(round(row[column]))

        return Column(title, whole, short)

    columns = [
        text("name", "Budget"),
        text("subject", "Of"),
        Column("Period", lambda row: row["period"], kind="time"),
        amount("spent", "Spent"),
        *([amount("reserved", "Reserved")] if any(row["reserved"] for row in rows) else []),
        amount("limit", "Limit"),
        Column("Unit", lambda row: "USD" if row["unit"] == "usd" else row["unit"], kind="time"),
        Column("Used", lambda row: f"{row['used']:.0%}"),
        Column("Over", lambda row: row["over"], kind="time", wide_only=True),
        Column(
            "Resets",
            lambda row: local(row["resets_at"], wanted.zone, "%Y-%m-%d %H:%M"),
            lambda row: local(row["resets_at"], wanted.zone, "%m-%d %H:%M"),
            kind="time",
        ),
    ]
    unpriced = sum(row["unpriced"] for row in rows if row["unit"] == "usd")
    notes = [UNPRICED.format(count=unpriced)] if unpriced else []
    notes += [RESERVED] if any(row["reserved"] for row in rows) else []
    output.write_table(columns, rows, None, title=title, notes=notes, bar=lambda row: min(1.0, row["used"]), whole=1.0)
