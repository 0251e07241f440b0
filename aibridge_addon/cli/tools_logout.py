"""`aibridge tools logout`: end logins of people at an MCP server."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from aibridge_addon.cli import output
from aibridge_addon.cli.database import add_options, settings_of
from aibridge_addon.config.errors import did_you_mean
from aibridge_addon.config.system_user import operating_system_user
from aibridge_addon.recording import database
from aibridge_addon.recording.mcp_logins import McpLogins
from aibridge_addon.wire.printable import printable

if TYPE_CHECKING:
    from aibridge_addon.config.schema import Settings
    from aibridge_addon.tools.oauth.logins import Logins


def add(actions: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = actions.add_parser(
        "logout",
        help="end logins at a server",
        description="Revoke the tokens of an actor, or of all, at a server with `oauth`, and delete them from the "
        "database. Running bridges stop using them within seconds.",
    )
    command.add_argument("server", metavar="SERVER", help="the server's name in the configuration")
    command.add_argument("--all", action="store_true", help="all actors")
    command.add_argument("--json", action="store_true", help="print JSON")
    add_options(command)
    command.set_defaults(run=_run)
    return command


@contextmanager
def logins_of(settings: Settings) -> Iterator[Logins | None]:
    """Open the logins of the configured database. None: no server has any."""
    if not settings.mcp.logins:
        yield None
        return
    from aibridge_addon.tools.oauth.logins import Logins

    listen = settings.metrics.listen
    host = f"[{listen.host}]" if listen is not None and ":" in listen.host else listen.host if listen else ""
    served_at = f"{host}:{listen.port}" if listen is not None and listen.port else ""
    with closing(McpLogins(database.mcp_login_store(settings))) as opened:
        yield Logins.made(opened, settings.mcp, settings.egress, lambda: served_at)


def _run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    name, known = arguments.server, list(settings.mcp.logins)
    if name not in known:
        hint = did_you_mean(name, known)
        servers = f", only at: {', '.join(known)}{hint}" if known else ""
        print(f"people do not log in at {printable(name)}{servers}", file=sys.stderr)
        return 2
    if arguments.all and arguments.actor:
        print("--actor and --all exclude each other", file=sys.stderr)
        return 2
    actor = None if arguments.all else arguments.actor or settings.actor.default or operating_system_user()
    rows = asyncio.run(_ended(settings, name, actor))
    if arguments.json:
        output.write_json({"rows": rows})
    else:
        for row in rows:
            how = "revoked and deleted" if row["revoked"] else "deleted, but not revoked at the server"
            print(printable(f"{row['actor']}: {how}"))
        if not rows:
            print(printable(f"{actor or 'No actor'} is not logged in at {name}."))
    return 0


async def _ended(settings: Settings, name: str, actor: str | None) -> list[dict[str, Any]]:
    rows = []
    with logins_of(settings) as logins:
        assert logins is not None
        for each in await logins.tokens.actors(name) if actor is None else [actor]:
            if (revoked := await logins.tokens.drop(name, each)) is not None:
                rows.append({"server": name, "actor": each, "revoked": revoked})
    return rows
