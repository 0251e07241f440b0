"""The host patterns of providers as subtrees of names, which X.509 name constraints have (RFC 5280, section 4.2.1.10).

A subtree is a name and all names below it. `*.openai.azure.com` is the subtree `openai.azure.com`. A `*` between other
labels is one subtree for each region of AWS. Elsewhere the subtree is the part behind the `*`, which is wider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aibridge_addon.config.providers import Provider
from aibridge_addon.providers.aws import REGIONS

SAMPLE = "aibridge"
"""A label in the place of each `*`, to ask whether the hosts of a pattern are permitted."""


def subtrees(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the subtrees that contain all hosts of these patterns, each once. Addresses stay as they are."""
    return tuple(dict.fromkeys(name for pattern in patterns for name in _names(_inner(pattern))))


def widened(pattern: str) -> str | None:
    """Return the subtree of a pattern if hosts are in it that do not match the pattern, else None."""
    inner = _inner(pattern)
    return None if "*" not in inner or _regions(inner) else inner.rpartition("*.")[2]


def not_permitted(providers: Iterable[Provider], permits: Callable[[str], bool]) -> list[str]:
    """Return the host patterns of providers none of whose hosts are permitted.

    `permits`: returns whether a host name or an address is permitted.
    """
    patterns = dict.fromkeys(host for provider in providers for host in provider.hosts)
    return [pattern for pattern in patterns if not any(permits(host) for host in _samples(pattern))]


def _samples(pattern: str) -> Iterable[str]:
    inner = _inner(pattern)
    return [name.replace("*", SAMPLE) for name in (_names(inner) if _regions(inner) else (pattern,))]


def _inner(pattern: str) -> str:
    """Return a pattern without the wildcards in front."""
    while pattern.startswith("*."):
        pattern = pattern[2:]
    return pattern


def _names(inner: str) -> tuple[str, ...]:
    if (regions := _regions(inner)) is not None:
        return tuple(inner.replace("*", region) for region in regions)
    return (inner.rpartition("*.")[2],)


def _regions(inner: str) -> tuple[str, ...] | None:
    """Return the regions that the one wildcard of a host of AWS stands for."""
    if inner.count("*") != 1:
        return None
    return next((regions for suffix, regions in REGIONS.items() if inner.endswith(f".{suffix}")), None)
