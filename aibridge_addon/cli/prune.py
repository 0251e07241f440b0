"""`aibridge prune`: delete old rows and texts now."""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from typing import Any

from pydantic_core import PydanticCustomError

from aibridge_addon.cli import database, deletion
from aibridge_addon.cli.examples import examples
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.values import parse_lifetime
from aibridge_addon.recording.database import prunable, spool_folder
from aibridge_addon.recording.expiry import Expiry
from aibridge_addon.recording.pruning import expired
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.recording.spool import remove_old
from aibridge_addon.records import utc_now

DESCRIPTION = """Delete interceptions, with all that belongs to them, and their texts.
Without --older-than and --content-older-than, recording.retention of the configuration says how old they may be.
Interceptions in progress stay. So do the sums by hour. The proxy may run meanwhile."""

EXAMPLES = examples(
    "aibridge prune --dry-run",
    "aibridge prune --older-than 400d --content-older-than 30d",
)


def add(commands: Any) -> None:
    command = commands.add_parser("prune", help="delete old rows", description=DESCRIPTION, **EXAMPLES)
    database.add_options(command)
    command.add_argument("--older-than", metavar="AGE", type=_age, help="delete rows older than this, such as 30d")
    command.add_argument(
        "--content-older-than",
        metavar="AGE",
        type=_age,
        help="delete prompts, answers, thoughts, tool inputs and results older than this; their rows stay",
    )
    command.add_argument(
        "--vacuum",
        action="store_true",
        help="write the SQLite file anew, once for a file of an earlier version; the proxy cannot write meanwhile",
    )
    deletion.add_options(command)
    command.set_defaults(run=run, usage_error=command.error)


def _age(text: str) -> timedelta:
    try:
        age = parse_lifetime(text)
    except PydanticCustomError as e:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: {(e.context or {})['expected']}") from None
    if age is None:
        raise argparse.ArgumentTypeError("0 means for ever; leave the option out to delete nothing")
    return age


def run(arguments: argparse.Namespace) -> int:
    settings = database.settings_of(arguments)
    if arguments.vacuum and settings.database.sqlite_path is None:
        arguments.usage_error("--vacuum is for SQLite; PostgreSQL uses the space of deleted rows again by itself")
    expiry = _expiry(arguments, settings)
    spools = 0
    with prunable(settings) as opened:
        deleted = deletion.delete(opened, expired(expiry, opened.tables()), dry_run=arguments.dry_run)
        if not arguments.dry_run:
            if expiry.rows is not None:
                spools = remove_old(spool_folder(settings), settings.database.place, expiry.rows)
            if deleted.rows and not opened.shrinks and not arguments.vacuum:
                print("the file keeps its size; aibridge prune --vacuum changes that once and for all", file=sys.stderr)
    if arguments.vacuum and not arguments.dry_run:
        _vacuum(settings)
    limits = {"rows_before": expiry.rows, "content_before": expiry.content}
    times = {name: None if limit is None else timestamp(limit) for name, limit in limits.items()}
    deletion.print_counts(deleted, settings, arguments, **times, spool_files=spools)
    return 0


def _vacuum(settings: Settings) -> None:
    from aibridge_addon.recording.sqlite.pruning import vacuum

    assert settings.database.sqlite_path is not None
    print("writing the file anew", file=sys.stderr)
    try:
        vacuum(settings.database.sqlite_path)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("rows were deleted, and the file was perhaps not written anew") from None


def _expiry(arguments: argparse.Namespace, settings: Settings) -> Expiry:
    """Return what is too old. An option replaces the whole of the configured retention."""
    rows, content = arguments.older_than, arguments.content_older_than
    if rows is None and content is None:
        retention = settings.recording.retention
        rows, content = retention.rows, retention.content
        if rows is None and content is None:
            print("recording.retention is 0: rows are kept for ever", file=sys.stderr)
    return Expiry.after(utc_now(), rows=rows, content=content)
