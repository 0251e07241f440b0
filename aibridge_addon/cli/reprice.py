"""`aibridge report --reprice`: work out the costs of stored token rows again."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from typing import Any

from aibridge_addon.cli import database, output, period
from aibridge_addon.cli.output import Column, Row, name
from aibridge_addon.config.schema import Settings
from aibridge_addon.recording.database import prices, queries
from aibridge_addon.recording.hourly_usage import TABLE
from aibridge_addon.recording.queries import has_table
from aibridge_addon.recording.reports import Question
from aibridge_addon.records import DatabaseUnavailable

STATED = "Rows whose cost the provider stated are left as they are, and do not appear here."
NOTHING_WRITTEN = "nothing was written"
SOME_WRITTEN = "some rows have their new cost; the same command works out the rest"
NOTHING = "There are no token rows without a stated cost in this period."


def run(arguments: argparse.Namespace) -> int:
    # The price list takes half a second to load.
    from aibridge_addon.recording.prices import price_list
    from aibridge_addon.recording.repricing import Comparison, reprice

    if arguments.breakdown or arguments.by:
        arguments.command.error("--reprice has no --by and no --breakdown: a row is a model")
    wanted = period.period_of(arguments)
    settings = database.settings_of(arguments)
    asked = Question((), wanted.zone, wanted.since, wanted.until, tuple(arguments.actor), tuple(arguments.model))
    with ExitStack() as stack:
        target = None
        if not arguments.dry_run:
            _check_version(settings)
            target = stack.enter_context(prices(settings))
        try:
            found = reprice(partial(queries, settings), asked, target)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(NOTHING_WRITTEN if target is None else SOME_WRITTEN) from None
    whole = Comparison()
    for comparison in found.values():
        whole.add(comparison)
    models = sorted(
        found,
        key=lambda model: (-abs(found[model].new_cost_usd - found[model].cost_usd), -found[model].token_usages, model),
    )
    rows: list[Row] = [{"model": model, **found[model].columns()} for model in models]
    totals = whole.columns()
    if arguments.json:
        output.write_json(
            {"rows": rows, "totals": totals, **wanted.columns(), "database": str(settings.database)}
            | {"dry_run": arguments.dry_run, "price_list": price_list()}
        )
    elif arguments.csv:
        output.write_csv(rows, ("model", *totals))
    else:
        done = "Costs that --reprice would write" if arguments.dry_run else "Costs that were written"
        title = f"{done}, {wanted}, time zone {wanted.zone.key}; price list: {price_list()}"
        if rows:
            output.write_table(_columns(totals, rows), rows, totals, title=title, notes=[STATED])
        else:
            print(f"{title}\n\n{NOTHING}")
    return 0


def _check_version(settings: Settings) -> None:
    """Raises DatabaseUnavailable if costs cannot be changed together with the hourly usage."""
    with queries(settings) as rows:
        if not has_table(rows, TABLE):
            place = settings.database.place
            raise DatabaseUnavailable(f"{place}: the table {TABLE} is missing: start the bridge once, which adds it")


def _columns(totals: Any, rows: list[Row]) -> list[Column]:
    return [
        Column("Model", lambda row: "Total" if row is totals else name(row["model"]), kind="name"),
        output.count_column("Token\nrows", "token_usages"),
        output.count_column("Changed", "changed"),
        output.amount_column("Before\nUSD", "cost_usd", rows),
        output.amount_column("After\nUSD", "new_cost_usd", rows),
        output.count_column("Unpriced\nbefore", "unpriced"),
        output.count_column("Unpriced\nafter", "new_unpriced"),
    ]
