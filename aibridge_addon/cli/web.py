"""`aibridge web`: read-only pages over the record, for a browser."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from functools import partial
from typing import Any

from aibridge_addon.cli import budgets, database
from aibridge_addon.cli.examples import examples
from aibridge_addon.cli.period import zone_of
from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.values import Listen
from aibridge_addon.recording.database import queries
from aibridge_addon.records import utc_now

DESCRIPTION = """Show pages with spend, tokens, requests, sessions as conversations, tools, limits and budgets. They
change nothing. They are for this machine only, unless --token is given."""
TOKEN_VARIABLE = "AIBRIDGE_WEB_TOKEN"  # noqa: S105 (a name)
DEFAULT = "127.0.0.1:9470"
MIN_TOKEN = 16
"""Characters, so that a token cannot be guessed."""
STOP = 2
"""Seconds that a stop waits for answers. Streams of open pages end with it."""

EXAMPLES = examples(
    "aibridge web",
    "aibridge web --database postgresql://aibridge@db/aibridge",
    f"{TOKEN_VARIABLE}=$(openssl rand -hex 16) aibridge web --listen 0.0.0.0:9470",
)


def add(commands: Any) -> None:
    command = commands.add_parser("web", help="show pages in a browser", description=DESCRIPTION, **EXAMPLES)
    database.add_options(command)
    command.add_argument("--listen", metavar="HOST:PORT", default=DEFAULT, help=f"default: {DEFAULT}")
    command.add_argument(
        "--token",
        metavar="TOKEN",
        default=os.environ.get(TOKEN_VARIABLE) or None,
        help=f"what users have to enter; needed where others reach the address (default: {TOKEN_VARIABLE})",
    )
    command.add_argument("--timezone", metavar="ZONE", help="such as Europe/Berlin or UTC (default: the machine's)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import uvicorn

    from aibridge_addon.web.app import Source, application
    from aibridge_addon.web.guard import is_loopback

    address = _address(arguments.listen)
    token: str | None = arguments.token
    if token is None and not is_loopback(address.host):
        raise ConfigError([Problem("--listen", arguments.listen, "an address of this machine alone, or --token")])
    if token is not None and len(token) < MIN_TOKEN:
        raise ConfigError([Problem("--token", f"{len(token)} characters", f"at least {MIN_TOKEN}")])
    zone = zone_of(arguments.timezone)
    settings = database.settings_of(arguments)
    source = Source(
        open=partial(queries, settings),
        budgets=lambda: budgets.current(settings, utc_now) if settings.budgets else [],
        name=str(settings.database),
        zone=zone,
        now=utc_now,
    )
    with queries(settings):
        pass  # a database that cannot be read is an error at the start
    config = uvicorn.Config(
        application(source, token=token),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP,
        limit_concurrency=256,
    )
    listening = _listening(address)
    host, port = listening.getsockname()[:2]
    print(
        f"pages: http://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C ends them)", file=sys.stderr, flush=True
    )
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def _address(text: str) -> Listen:
    """Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError([Problem("--listen", f"{text!r}", f"HOST:PORT, such as {DEFAULT}")])
    return Listen(host.strip("[]"), int(port))


def _listening(address: Listen) -> socket.socket:
    """Raises ConfigError."""
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=256)
    except OSError as e:
        raise ConfigError(
            [
                Problem(
                    "--listen",
                    f"{address.host}:{address.port}: {os.strerror(e.errno) if e.errno else e}",
                    "a free address",
                )
            ]
        ) from e
