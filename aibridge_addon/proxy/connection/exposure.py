"""Refuse to start if an unauthenticated client could use a central credential, of a provider or of an MCP server."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from urllib.parse import parse_qsl

from mitmproxy.options import Options
from mitmproxy.proxy import mode_specs

from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.schema import Actor, Settings, StdioServer
from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.proxy.connection.addresses import maybe_address

logger = logging.getLogger(__name__)

CREDENTIAL_NAMES = ("key", "token", "secret", "password", "passwd", "pat", "authorization", "cookie")
"""How the name of a credential ends."""
OPTIONS = frozenset({"mode", "listen_host", "proxyauth"})
"""mitmproxy's options on which the check depends."""
ALLOWED = (
    "listening on loopback only (--listen-host 127.0.0.1), --proxyauth with names and passwords, actor.required: true"
    " without actor.default, or allow_anonymous: true at this "
)


def check_exposure(settings: Settings, options: Options, file: str) -> None:
    """Raise ConfigError if an unauthenticated client could use a central credential."""
    if reachable_from_other_machines(options) and not _requires_authentication(settings.actor, options):
        found = "a central credential that unauthenticated clients could use"
        problems = [Problem(path, found, ALLOWED + owner, file) for path, owner in _central(settings)]
        if problems:
            raise ConfigError(problems)


def warn_if_open(settings: Settings, options: Options) -> None:
    """Log a warning if unauthenticated clients of other machines could use the proxy."""
    if (
        options.server
        and reachable_from_other_machines(options)
        and not _requires_authentication(settings.actor, options)
    ):
        logger.warning(
            "aibridge: other machines can use this proxy without authentication: add --listen-host 127.0.0.1,"
            " --proxyauth, or actor.required: true"
        )


def _requires_authentication(actor: Actor, options: Options) -> bool:
    """Return whether every client has to authenticate. `--proxyauth any` accepts every name and password."""
    return bool(options.proxyauth and options.proxyauth != "any") or (actor.required and actor.default is None)


def _central(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield the keys of all central credentials that are not open to anonymous clients on purpose, and their owners."""
    for index, provider in enumerate(settings.providers):
        if provider.allow_anonymous:
            continue
        if provider.api_key:
            yield f"providers[{index}].api_key", "provider"
        if provider.bedrock is not None:
            yield f"providers[{index}].bedrock", "provider"
    for name, server in settings.mcp.servers.items():
        if not server.allow_anonymous:
            yield from ((f"mcp.servers.{name}.{key}", "server") for key in server.credentials)
            if isinstance(server, StdioServer) and has_credential(server.args):
                yield f"mcp.servers.{name}.args", "server"


def has_credential(args: Sequence[str]) -> bool:
    """Return whether a program's arguments seem to contain a credential: by its form, or by the name before it.

    Names stand in options (`--api-key x`, `--token=x`), in headers (`Authorization: x`) and in queries (`?key=x`).
    """
    redactor = Redactor()
    return any(redactor.text(arg) != arg for arg in args) or any(
        value.strip() and name.strip().lower().endswith(CREDENTIAL_NAMES) for name, value in _named(args)
    )


def _named(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what may be a name and its value."""
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        option, _, value = arg.partition("=")
        if option.startswith("-"):
            yield option, value or ("" if following.startswith("-") else following)
        header, _, value = arg.partition(":")
        yield header, value
        yield from parse_qsl(arg.partition("?")[2].partition("#")[0])


def reachable_from_other_machines(options: Options) -> bool:
    """Return whether a listener is bound to other addresses than loopback."""
    return any(not _is_loopback(host) for host in _hosts(options))


def _hosts(options: Options) -> Iterable[str]:
    for text in options.mode:
        mode = mode_specs.ProxyMode.parse(text)
        if mode.type_name != "local":  # local capture has no listener: it redirects programs of this machine
            yield mode.listen_host(options.listen_host)


def _is_loopback(host: str) -> bool:
    address = maybe_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)
