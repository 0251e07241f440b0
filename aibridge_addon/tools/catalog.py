"""What is offered at one moment: an immutable snapshot of every server's tools, filtered, named and sorted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from re import Pattern
from typing import Any

from aibridge_addon.dialects.turns import InjectedTool
from aibridge_addon.tools import naming

MANY_TOOLS = 128
"""What OpenAI's API accepts in one request; models choose badly long before."""

MAX_TOOLS = 1000
MAX_NAME = 256
MAX_SCHEMA = 256 << 10


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool as its server lists it."""

    name: str
    description: str
    input_schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Listing:
    """What one server offers, and which of it is wanted."""

    server_name: str
    server_url: str | None
    allow: Sequence[Pattern[str]] = ()
    deny: Sequence[Pattern[str]] = ()
    offers: Sequence[Offer] = ()

    def wants(self, name: str) -> bool:
        """Search the patterns in a tool's original name; deny wins."""
        if any(pattern.search(name) for pattern in self.deny):
            return False
        return not self.allow or any(pattern.search(name) for pattern in self.allow)


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    """As requests offer it: `bmcp_<server>_<tool>`, valid for every provider."""
    original_name: str
    server_name: str
    server_url: str | None
    """Without its query; None for a program."""
    description: str
    input_schema: dict[str, Any]
    """JSON Schema, whole."""


@dataclass(frozen=True)
class Catalog:
    """Tools sorted by name: a request that carries them is the same bytes each time."""

    tools: tuple[Tool, ...] = ()

    def get(self, name: str) -> Tool | None:
        return self._by_name.get(name)

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self._by_name)

    @cached_property
    def injected(self) -> tuple[InjectedTool, ...]:
        return tuple(InjectedTool(tool.name, tool.description, tool.input_schema) for tool in self.tools)

    @cached_property
    def _by_name(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.tools}


def build(listings: Iterable[Listing]) -> Catalog:
    """Make the catalogue of all servers' tools; of two with the same name on one server, the first counts."""
    wanted: dict[naming.Pair, tuple[Listing, Offer]] = {}
    for listing in listings:
        for offer in listing.offers:
            if listing.wants(offer.name):
                wanted.setdefault((listing.server_name, offer.name), (listing, offer))
    names = naming.assign(wanted)
    tools = (
        Tool(
            name=names[pair],
            original_name=offer.name,
            server_name=listing.server_name,
            server_url=listing.server_url,
            description=offer.description,
            input_schema=offer.input_schema,
        )
        for pair, (listing, offer) in wanted.items()
    )
    return Catalog(tuple(sorted(tools, key=lambda tool: tool.name)))


def admit(listed: Iterable[Offer]) -> tuple[tuple[Offer, ...], tuple[str, ...]]:
    """Take what can be offered to a model; of the rest, say what was wrong with it."""
    offers: dict[str, Offer] = {}
    left_out: list[str] = []
    for offer in listed:
        if problem := _maybe_problem(offer, offers):
            left_out.append(f"{offer.name[:60]!r} ({problem})")
        else:
            offers[offer.name] = offer
    return tuple(offers.values()), tuple(left_out)


def _maybe_problem(offer: Offer, offers: Mapping[str, Offer]) -> str | None:
    if len(offers) >= MAX_TOOLS:
        return f"more than {MAX_TOOLS} tools"
    if not 0 < len(offer.name) <= MAX_NAME:
        return f"a name of {len(offer.name)} characters"
    if offer.name in offers:
        return "a second one of this name"
    try:
        size = len(json.dumps(offer.input_schema).encode())
    except (RecursionError, TypeError, ValueError):
        return "a schema that cannot be written"
    return f"a schema of {size} bytes" if size > MAX_SCHEMA else None
