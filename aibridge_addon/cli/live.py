"""`aibridge live`: what runs now and what was, on one screen that is read again every second."""

from __future__ import annotations

import argparse
import math
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from aibridge_addon.cli import database, output, period
from aibridge_addon.cli.examples import examples
from aibridge_addon.config.schema import Settings
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.live import RECENT, Snapshot, per_hour, snapshot
from aibridge_addon.recording.reports import Usage
from aibridge_addon.records import DatabaseUnavailable, utc_now

DESCRIPTION = """Show what runs now and what was: requests in flight, the last ones that ended, usage of the day by
model and by user, usage per hour, errors, and limits of plans. q or Ctrl-C ends it. Without a terminal it prints one
snapshot and ends."""

REFRESH = 1.0
"""Seconds between two snapshots."""
MIN_REFRESH = 0.1
MAX_REFRESH = 3600.0
TICK = 0.2
"""Seconds. How often the screen looks for keys, a new size and a new snapshot."""
QUIT = frozenset("qQ\x03")

EXAMPLES = examples("aibridge live", "aibridge live --refresh 5 --timezone UTC", "aibridge live --json | jq .running")


def add(commands: Any) -> None:
    command = commands.add_parser("live", help="show what runs now", description=DESCRIPTION, **EXAMPLES)
    command.add_argument(
        "--refresh",
        type=float,
        metavar="SECONDS",
        default=REFRESH,
        help=f"seconds between two snapshots, from {MIN_REFRESH:g} on (default: {REFRESH:g})",
    )
    command.add_argument("--once", action="store_true", help="print one snapshot and end")
    command.add_argument("--json", action="store_true", help="print one snapshot as JSON and end")
    period.add_timezone(command)
    database.add_options(command)
    command.set_defaults(run=run, command=command)


def run(arguments: argparse.Namespace) -> int:
    refresh = arguments.refresh
    if not (math.isfinite(refresh) and MIN_REFRESH <= refresh <= MAX_REFRESH):
        arguments.command.error(f"--refresh: a number from {MIN_REFRESH:g} to {MAX_REFRESH:g} is needed")
    zone = period.zone_of(arguments.timezone)
    settings = database.settings_of(arguments)
    if arguments.json:
        output.write_json(_document(read(settings, zone), zone, str(settings.database)))
    elif arguments.once or not sys.stdout.isatty():
        _print(read(settings, zone), zone, str(settings.database))
    else:
        _show(settings, zone, refresh)
    return 0


def read(settings: Settings, zone: ZoneInfo) -> Snapshot:
    """Raises ConfigError and DatabaseUnavailable."""
    with queries(settings) as rows:
        return snapshot(rows, utc_now(), zone)


# --- one snapshot ----------------------------------------------------------------------------------------------------


def _print(found: Snapshot, zone: ZoneInfo, place: str) -> None:
    from aibridge_addon.cli.live_screen import View, draw

    target = output.console()
    target.print(draw(View(place, zone, found), found.at, target.width, None))


def _document(found: Snapshot, zone: ZoneInfo, place: str) -> dict[str, Any]:
    def listed(key: str, usages: Any) -> list[dict[str, Any]]:
        return [{key: name, **usage.columns()} for name, usage in sorted(usages.items(), key=_by_cost)]

    return {
        "at": found.at.isoformat(),
        "in_flight": found.in_flight,
        "running": found.running,
        "ended": found.ended,
        "today": {
            "since": found.since.isoformat(),
            "totals": found.today.columns(),
            "models": listed("model", found.models),
            "users": listed("initiator_id", found.actors),
        },
        "per_hour": {"of_minutes": RECENT.seconds // 60, **per_hour(found.recent).columns()},
        "errors": found.errors,
        "limits": found.limits,
        "timezone": zone.key,
        "database": place,
    }


def _by_cost(item: tuple[str, Usage]) -> tuple[float, int, str]:
    return -(item[1].cost() or 0.0), -item[1].output_tokens, str(item[0])


# --- the screen ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Latest:
    """The last snapshot, which a thread of its own replaces: a database that hangs keeps no key waiting."""

    read: Callable[[], Snapshot]
    found: Snapshot | None = None
    problem: str = ""
    since: datetime | None = None
    """When the database was found away."""
    failed: Exception | None = None
    """What ends the command."""

    def follow(self, refresh: float, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                self.found, self.since, self.problem = self.read(), None, ""
            except DatabaseUnavailable as e:
                self.problem, self.since = str(e), self.since or utc_now()
            except Exception as e:  # noqa: BLE001 (the command raises it; else the screen would stand still)
                self.failed = e
                return
            ended.wait(refresh)


def _show(settings: Settings, zone: ZoneInfo, refresh: float) -> None:
    """Show snapshots until a key ends it. Raises ConfigError."""
    from rich.live import Live

    from aibridge_addon.cli.keyboard import Keyboard
    from aibridge_addon.cli.live_screen import Problem, View, draw

    latest = _Latest(lambda: read(settings, zone))
    view = View(str(settings.database), zone)
    target = output.console()
    ended = threading.Event()
    # A daemon, because a query may last longer than the patience of the person who ends the command.
    threading.Thread(target=latest.follow, args=(refresh, ended), daemon=True, name="aibridge-live").start()
    with ExitStack() as stack:
        stack.callback(ended.set)
        keyboard = stack.enter_context(Keyboard())
        live = stack.enter_context(Live(console=target, screen=True, auto_refresh=False))
        shown: object = None
        try:
            while not QUIT.intersection(keyboard.pressed(TICK)):
                if keyboard.is_pause_wanted:
                    live.stop()
                    keyboard.pause()
                    live.start()
                    shown = None
                if latest.failed is not None:
                    raise latest.failed
                since = latest.since
                problem = Problem(latest.problem, since) if since is not None else None
                view = replace(view, snapshot=latest.found, problem=problem)
                now, size = utc_now(), target.size
                if (state := (view, size, now.replace(microsecond=0))) != shown:
                    live.update(draw(view, now, size.width, size.height), refresh=True)
                    shown = state
        except KeyboardInterrupt:
            return
