"""`aibridge purge`: delete one person's rows or texts."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from aibridge_addon.cli import database, deletion
from aibridge_addon.cli.examples import examples
from aibridge_addon.recording.database import prunable
from aibridge_addon.recording.purging import rows_of, running, texts_of
from aibridge_addon.records import utc_now

DESCRIPTION = """Delete what is recorded of one actor, whatever its age.
--texts deletes prompts, answers, thoughts, tool inputs and results; tokens and costs stay.
Both delete what later requests of the actor's conversations with injected tools need.
--rows deletes all rows. Sums by hour stay, without the actor. Interceptions in progress stay."""

EXAMPLES = examples(
    "aibridge purge --actor alice --texts --dry-run",
    "aibridge purge --actor alice --rows",
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "purge", help="delete one person's rows or texts", description=DESCRIPTION, **EXAMPLES
    )
    database.add_options(command)
    command.add_argument("--actor", required=True, metavar="ACTOR", help="the actor, exactly as initiator_id has it")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--texts", action="store_true", help="delete texts, keep rows")
    what.add_argument("--rows", action="store_true", help="delete rows")
    deletion.add_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    settings = database.settings_of(arguments)
    actor: str = arguments.actor
    with prunable(settings) as opened:
        steps = rows_of(actor, opened.tables()) if arguments.rows else texts_of(actor, utc_now())
        deleted = deletion.delete(opened, steps, dry_run=arguments.dry_run)
        still_running = running(opened, actor)
    if still_running:
        print(f"in progress, not deleted: interceptions={still_running}; repeat the command later", file=sys.stderr)
    if not (deleted.rows or deleted.texts):
        print(f"nothing is recorded of the actor {actor!r} that could be deleted", file=sys.stderr)
    deletion.print_counts(deleted, settings, arguments, actor=actor)
    return 0
