"""`aibridge export`: write the record as JSON lines."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from aibridge_addon.cli import database
from aibridge_addon.cli.examples import examples
from aibridge_addon.cli.period import ALLOWED
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.export import export

DESCRIPTION = """Write all interceptions that have ended, with their details, as JSON lines: a backup, or a
move to another database with `aibridge import`. The proxy may write meanwhile: the rows are those of
one moment. The file appears under its name when it is complete. If an export is cut off, the same
command begins again. The file is as confidential as the database."""
STEP = 10_000
"""Rows between two lines of progress."""

EXAMPLES = examples(
    "aibridge export record.jsonl",
    "aibridge export --since 2026-11-01 | zstd > record.zst",
)


def add(commands: Any) -> None:
    command = commands.add_parser("export", help="write the record to a file", description=DESCRIPTION, **EXAMPLES)
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
    progress = Progress("exported")
    try:
        settings = database.settings_of(arguments)
        if _is_same_file(arguments.file, settings.database.sqlite_path):
            print(f"{arguments.file}: this is the database, which an export must not replace", file=sys.stderr)
            return 2
        with _opened(arguments.file) as file:
            rows = export(queries(settings), file, arguments.since, progress)
    except BrokenPipeError:
        raise
    except OSError as e:
        print(f"{arguments.file}: {e.strerror or e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the export is incomplete, {progress}") from None
    print(f"rows exported: {rows}", file=sys.stderr)
    return 0


class Progress:
    """Reports every `STEP` rows on stderr."""

    def __init__(self, done: str) -> None:
        self._done = done
        self._rows = 0
        self._reported = 0

    def __call__(self, rows: int) -> None:
        self._rows = rows
        if rows - self._reported >= STEP:
            self._reported = rows
            print(self, file=sys.stderr)

    def __str__(self) -> str:
        return f"rows {self._done} so far: {self._rows}"


def _is_same_file(name: str, database: Path | None) -> bool:
    try:
        return database is not None and name != "-" and os.path.samefile(name, database)
    except OSError:  # one of them is not there
        return False


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """Open the file under another name, which only the owner can read, and rename it when it is complete.

    If it does not get complete, it is removed. The next export overwrites what a killed one has left.
    """
    if name == "-":
        yield sys.stdout.buffer
        return
    if os.path.exists(name) and not os.path.isfile(name):  # a pipe or a device
        with open(name, "wb") as file:
            yield file
        return
    name = os.path.realpath(name)
    unfinished = f"{name}.part"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        _lock(descriptor, unfinished)
        try:
            os.fchmod(descriptor, 0o600)
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(descriptor)
            os.replace(unfinished, name)
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished)
            raise


def _lock(descriptor: int, path: str) -> None:
    """Keep other exports from the same file. The system releases the lock when the process ends, however it does.

    Raises OSError if another process has it, or has renamed the file since it was opened.
    """
    with suppress(FileNotFoundError, BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return
    raise OSError(errno.EBUSY, "another export writes this file")


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: {ALLOWED}") from None
