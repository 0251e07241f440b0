"""`aibridge tokens`: create, list and revoke tokens, with which clients authenticate to the bridge."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
import uuid
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

from aibridge_addon.cli import output
from aibridge_addon.cli.database import add_options, settings_of
from aibridge_addon.cli.examples import examples
from aibridge_addon.credentials.client import mask
from aibridge_addon.credentials.tokens import RANDOM_BYTES, make_token, token_digest
from aibridge_addon.recording import database
from aibridge_addon.recording.rows import timestamp
from aibridge_addon.records import utc_now
from aibridge_addon.telemetry.log.text import one_line

MAX_NAME = 256
"""Characters of an actor's or a group's name. Rows have no longer ones."""
MAX_NOTE = 1_000
UNITS = "a whole number of d, w or h, such as 90d, 12w or 36h; at most 36500d"
NOTHING = "There are no tokens. `aibridge tokens create --actor NAME` makes one."
USE = "Clients use it in the place of the provider's API key, or as the proxy's password: http://token:TOKEN@HOST:PORT"
HEADER = "ID, hint, actor, groups, expiry, last use, note"
COLUMNS = ("id", "actor", "groups", "hint", "note", "created_at", "expires_at", "revoked_at", "last_used_at")
LIST = """
select id, actor, "groups", hint, note, created_at, expires_at, revoked_at, last_used_at
from aibridge_tokens order by created_at, id
"""

DESCRIPTION = """Manage tokens of the bridge. A client uses one in the place of the provider's API key: the bridge
knows its actor by it, and sends its own central key to the provider. The token itself is printed once, and only a
keyed hash of it is stored. `create` takes --actor NAME, --group NAME, --expires 90d and --note TEXT; `list` takes no
argument; `revoke` takes an id. All of them take --json, and `list` takes --csv."""

EXAMPLES = examples(
    "aibridge tokens create --actor alice --expires 90d --note laptop",
    "aibridge tokens list",
    "aibridge tokens revoke ID",
)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "tokens", help="create, list and revoke tokens of clients", description=DESCRIPTION, **EXAMPLES
    )
    actions = command.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a token and print it", description="Create a token.")
    create.add_argument("--actor", required=True, type=_name, metavar="NAME", help="whom its requests belong to")
    create.add_argument(
        "--group", dest="groups", action="append", default=[], type=_name, metavar="NAME", help="may be repeated"
    )
    create.add_argument("--expires", type=_lifetime, metavar="90d", help=f"{UNITS} (default: never)")
    create.add_argument("--note", type=_note, metavar="TEXT", help="what it is for")
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="list all tokens", description="List all tokens, without their secrets.")
    output.add_options(listing)
    listing.set_defaults(run=_list)
    revoke = actions.add_parser(
        "revoke", help="revoke a token", description="Revoke a token. All processes refuse it within seconds."
    )
    revoke.add_argument("id", metavar="ID", help="the id that `create` and `list` print")
    revoke.set_defaults(run=_revoke)
    for action in (create, revoke):
        action.add_argument("--json", action="store_true", help="print JSON")
    for action in (create, listing, revoke):
        add_options(action)


def _create(arguments: argparse.Namespace) -> int:
    token = make_token(secrets.token_bytes(RANDOM_BYTES))
    now = utc_now()
    row = {
        "id": str(uuid.uuid4()),
        "actor": arguments.actor,
        "groups": list(dict.fromkeys(arguments.groups)),
        "hint": mask(token),
        "note": arguments.note,
        "created_at": now,
        "expires_at": None if arguments.expires is None else now + arguments.expires,
    }
    with closing(database.token_store(settings_of(arguments))) as tokens:
        tokens.add(token_digest(token), row, secrets.token_bytes(RANDOM_BYTES))
    if arguments.json:
        print(json.dumps({"token": token, **row}, default=timestamp, ensure_ascii=False, indent=2))
        return 0
    expires = "never expires" if row["expires_at"] is None else f"expires {_minute(timestamp(row['expires_at']))}"
    print(f"id: {row['id']}, {expires}. The token is not shown again:", file=sys.stderr)
    print(token)
    print(USE, file=sys.stderr)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    with database.queries(settings) as queries:
        rows = [row | {"groups": json.loads(row["groups"])} for row in queries.select(LIST)]
    if arguments.json:
        about = {"timezone": "UTC", "since": None, "until": None, "database": str(settings.database)}
        output.write_json({"rows": rows, "totals": {"tokens": len(rows)}, **about})
    elif arguments.csv:
        output.write_csv([row | {"groups": ",".join(row["groups"])} for row in rows], COLUMNS)
    elif not rows:
        print(NOTHING)
    else:
        now = timestamp(utc_now())
        print(HEADER, file=sys.stderr)
        for row in rows:
            output.write(one_line(f"{row['id']} {row['hint']} {row['actor']} {'; '.join(_details(row, now))}") + "\n")
    return 0


def _details(row: dict[str, Any], now: str) -> list[str]:
    if row["revoked_at"] is not None:
        state = f"revoked {_minute(row['revoked_at'])}"
    elif row["expires_at"] is None:
        state = "never expires"
    else:
        state = f"{'expired' if row['expires_at'] <= now else 'expires'} {_minute(row['expires_at'])}"
    used = "never used" if row["last_used_at"] is None else f"used {_minute(row['last_used_at'])}"
    groups = [f"groups={','.join(row['groups'])}"] if row["groups"] else []
    return [*groups, state, used, *([row["note"]] if row["note"] else [])]


def _revoke(arguments: argparse.Namespace) -> int:
    with closing(database.token_store(settings_of(arguments))) as tokens:
        revoked_at = tokens.revoke(arguments.id, utc_now())
    if revoked_at is None:
        print(f"there is no token with the id {arguments.id}: `aibridge tokens list` has all ids", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps({"id": arguments.id, "revoked_at": timestamp(revoked_at)}, indent=2))
    else:
        print(f"{arguments.id}  revoked {_minute(timestamp(revoked_at))}")
    return 0


def _minute(time: str) -> str:
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M UTC")


def _name(text: str) -> str:
    if not text.strip() or len(text) > MAX_NAME or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_NAME} printable characters")
    return text.strip()


def _note(text: str) -> str:
    if len(text) > MAX_NOTE or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected at most {MAX_NOTE} printable characters")
    return text


def _lifetime(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,6})([dwh])", text)
    hours = int(found[1]) * {"d": 24, "w": 24 * 7, "h": 1}[found[2]] if found else 0
    if not 0 < hours <= 36_500 * 24:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: expected {UNITS}")
    return timedelta(hours=hours)
