"""`aibridge export`: write the record as JSON lines."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any

from aibridge_addon.cli import database
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.export import export

DESCRIPTION = """Write all interceptions that have ended, with their details, as JSON lines: a backup, or a
move to another database with `aibridge import`. The proxy may write meanwhile: the rows are those of
one moment. The file appears under its name when it is complete. It is as confidential as the database."""
STEP = 10_000
"""Rows between two lines of progress."""


def add(commands: Any) -> None:
    command = commands.add_parser("export", help="write the record to a file", description=DESCRIPTION)
    command.add_argument("file", metavar="FILE", nargs="?", default="-", help="the file; - (the default): stdout")
    command.add_argument(
        "--since",
        metavar="TIME",
        type=_time,
        help="only interceptions that ended then or later: an ISO date or time, in this machine's zone if it has none",
    )
    database.add_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    settings = database.settings_of(arguments)
    try:
        with _opened(arguments.file) as file:
            rows = export(queries(settings), file, arguments.since, progress("exported"))
    except BrokenPipeError:
        raise
    except OSError as e:
        print(f"{arguments.file}: {e.strerror or e}", file=sys.stderr)
        return 1
    print(f"rows exported: {rows}", file=sys.stderr)
    return 0


def progress(done: str) -> Any:
    """Return a function that reports every `STEP` rows on stderr."""
    reported = 0

    def report(rows: int) -> None:
        nonlocal reported
        if rows - reported >= STEP:
            reported = rows
            print(f"rows {done} so far: {rows}", file=sys.stderr)

    return report


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """Open the file under another name, which only the owner can read, and rename it when it is complete."""
    if name == "-":
        yield sys.stdout.buffer
        return
    unfinished = f"{name}.part"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        yield file
        os.fsync(file.fileno())
    os.replace(unfinished, name)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone()
