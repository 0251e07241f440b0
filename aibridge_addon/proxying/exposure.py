"""Whether strangers could spend a central key: then there is no start."""

from __future__ import annotations

from collections.abc import Iterator

from mitmproxy.options import Options

from aibridge_addon.config import Actor, ConfigError, Problem, Settings
from aibridge_addon.proxying.listening import strangers_reach

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
