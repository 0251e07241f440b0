"""Whether strangers could spend a central key: then there is no start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mitmproxy.options import Options
from mitmproxy.proxy import mode_specs

from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.schema import Actor, Settings
from aibridge_addon.proxy.connection.addresses import maybe_address

OPTIONS = frozenset({"mode", "listen_host", "proxyauth"})
"""mitmproxy's options that decide about it."""
ALLOWED = (
    "listening on loopback only (--listen-host 127.0.0.1), --proxyauth with names and passwords, actor.required: true"
    " without actor.default, or allow_anonymous: true at this provider"
)


def check_exposure(settings: Settings, options: Options, file: str) -> None:
    """Raise ConfigError if somebody who has not said who they are could use a central credential."""
    if strangers_reach(options) and not _asks_who(settings.actor, options):
        problems = [
            Problem(path, "a central credential that strangers could use", ALLOWED, file) for path in _central(settings)
        ]
        if problems:
            raise ConfigError(problems)


def _asks_who(actor: Actor, options: Options) -> bool:
    """Whether everybody has to authenticate. mitmproxy's `any` takes whatever name and password it is given."""
    return bool(options.proxyauth and options.proxyauth != "any") or (actor.required and actor.default is None)


def _central(settings: Settings) -> Iterator[str]:
    for index, provider in enumerate(settings.providers):
        if provider.allow_anonymous:
            continue
        if provider.api_key:
            yield f"providers[{index}].api_key"
        if provider.bedrock is not None:
            yield f"providers[{index}].bedrock"


def strangers_reach(options: Options) -> bool:
    """Whether other machines can connect: any listener is bound to more than the loopback addresses."""
    return any(not _is_loopback(host) for host in _hosts(options))


def _hosts(options: Options) -> Iterable[str]:
    for text in options.mode:
        mode = mode_specs.ProxyMode.parse(text)
        if mode.type_name != "local":  # it takes the connections of this machine's own programs
            yield mode.listen_host(options.listen_host)


def _is_loopback(host: str) -> bool:
    address = maybe_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)
