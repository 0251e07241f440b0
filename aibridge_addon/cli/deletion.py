"""What the commands that delete rows share: the turn, progress and the counts at the end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence

from aibridge_addon.config.schema import Settings
from aibridge_addon.recording.pruning import Deleted, Pace, Prunable, Step, count, run
from aibridge_addon.records import DatabaseUnavailable

WAIT = 60.0
"""Seconds. Maximum time that a command waits for another process that deletes rows."""
POLL = 0.5
PROGRESS = 2.0
"""Seconds between two lines of progress."""


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="delete nothing, only count")
    command.add_argument("--json", action="store_true", help="print the counts as JSON")


def delete(database: Prunable, steps: Sequence[Step], *, dry_run: bool) -> Deleted:
    """Run the steps, with progress on stderr, or count what they would delete. Raises DatabaseUnavailable."""
    if dry_run:
        return count(database, steps)
    progress = _Progress()
    try:
        _wait_for_turn(database)
        return run(database, steps, Pace(report=progress))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{progress.so_far}; the same command deletes the rest") from None


def _wait_for_turn(database: Prunable) -> None:
    ending = time.monotonic() + WAIT
    waits = False
    while not database.take_turn():
        if not waits:
            print("another process deletes rows now, waiting for it", file=sys.stderr)
            waits = True
        if time.monotonic() >= ending:
            raise DatabaseUnavailable("another process deletes rows now: try again later")
        time.sleep(POLL)


class _Progress:
    def __init__(self) -> None:
        self.so_far = "nothing was deleted"
        self._next = time.monotonic() + PROGRESS

    def __call__(self, deleted: Deleted) -> None:
        self.so_far = f"deleted so far: rows={deleted.rows.total()} texts={deleted.texts.total()}"
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS
            print(self.so_far, file=sys.stderr)


def print_counts(
    deleted: Deleted, settings: Settings, arguments: argparse.Namespace, **more: Mapping[str, object] | object
) -> None:
    """Print the number of rows and texts by table."""
    tables = sorted(+deleted.rows | +deleted.texts)
    rows = [{"table": name, "rows": deleted.rows[name], "texts": deleted.texts[name]} for name in tables]
    totals = {"rows": deleted.rows.total(), "texts": deleted.texts.total()}
    if arguments.json:
        whole = {
            "rows": rows,
            "totals": totals,
            "dry_run": arguments.dry_run,
            **more,
            "database": str(settings.database),
        }
        print(json.dumps(whole, indent=2))
        return
    verb = "would be deleted" if arguments.dry_run else "deleted"
    if not rows:
        print(f"nothing {verb}")
        return
    print(f"{'table':<28} {'rows':>10} {'texts':>10}   ({verb})")
    for row in [*rows, {"table": "total", **totals}]:
        print(f"{row['table']:<28} {row['rows']:>10} {row['texts']:>10}")
