"""`aibridge import`: insert the rows of an export."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from typing import Any

from aibridge_addon.cli import database
from aibridge_addon.cli.examples import examples
from aibridge_addon.cli.export import Progress
from aibridge_addon.recording.database import importer
from aibridge_addon.recording.export import ImportFailed, import_

DESCRIPTION = """Insert the rows of a file that `aibridge export` wrote, of SQLite or PostgreSQL. Rows that are
there already are skipped, so an import that was cut off can be repeated. The proxy may write meanwhile.
If the file is torn, the rows before the fault are inserted, and the exit code is 1."""

EXAMPLES = examples(
    "aibridge import record.jsonl",
    "zstd -dc record.zst | aibridge import --database postgresql://db/aibridge",
)


def add(commands: Any) -> None:
    command = commands.add_parser("import", help="insert the rows of an export", description=DESCRIPTION, **EXAMPLES)
    command.add_argument("file", metavar="FILE", nargs="?", default="-", help="the file; - (the default): stdin")
    database.add_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    progress = Progress("read")
    try:
        settings = database.settings_of(arguments)
        with nullcontext(sys.stdin.buffer) if arguments.file == "-" else open(arguments.file, "rb") as file:
            target = importer(settings)
            target.open()
            try:
                rows, inserted, left_out = import_(target, file, progress)
            finally:
                target.close()
    except ImportFailed as e:
        print(f"{arguments.file}: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"{arguments.file}: {e.strerror or e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{progress}; the same command inserts the rest") from None
    print(f"rows read: {rows}, inserted: {inserted}, there before: {rows - inserted - left_out}", file=sys.stderr)
    if left_out:
        print(f"left out, because their interceptions are not there: {left_out}", file=sys.stderr)
    return 0
