"""The catalogue: an immutable snapshot of all servers' tools, filtered, named and sorted."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from re import Pattern
from typing import Any, NamedTuple

from aibridge_addon.dialects.turns import InjectedTool, Injection
from aibridge_addon.tools import naming, schemas

logger = logging.getLogger(__name__)

MAX_TOOLS = 1000
"""Maximum number of tools of one server. Further ones are left out."""
MAX_NAME = 256
"""Characters. Tools with longer names are left out."""
MAX_VIEWS = 64
"""Catalogues without some servers that are remembered. Further ones are built for each request."""
MAX_SCHEMA = 256 << 10
"""Bytes. Tools with larger input schemas are left out."""


DENIED = "deny matches it"
NOT_ALLOWED = "allow does not match it"
CHANGED = "it has changed since it was pinned (aibridge tools approve)"
NOT_PINNED = "it could not be pinned, because the database is away or has too many pins of the server"
NOT_READ_ONLY = "it is not annotated as read-only (read_only: true)"


@dataclass(frozen=True, slots=True)
class ListedTool:
    """A tool as its server lists it."""

    name: str
    description: str
    input_schema: dict[str, Any]
    original_keys: Mapping[str, str] = field(default_factory=dict)
    """Property keys that `admit` has renamed, each with the server's own."""
    annotations: Mapping[str, Any] = field(default_factory=dict)
    """The server's hints, as it sends them."""

    definition: str = field(default="", compare=False)
    """Description and schema as the server lists them, as JSON with sorted members."""

    digest: str = field(default="", compare=False)
    """SHA-256 of the definition."""

    @property
    def is_read_only(self) -> bool:
        return self.annotations.get("readOnlyHint") is True


class LeftOut(NamedTuple):
    """A tool that is not offered."""

    tool: str
    why: str

    def __str__(self) -> str:
        return f"{self.tool[:60]!r} ({self.why})"


@dataclass(frozen=True, slots=True)
class Listing:
    """The tools of one server, and the patterns that select those to offer."""

    server_name: str
    server_url: str | None
    allow: Sequence[Pattern[str]] = ()
    deny: Sequence[Pattern[str]] = ()
    tools: Sequence[ListedTool] = ()
    read_only: bool = False
    """Whether only tools are offered that are annotated as read-only."""
    pins: Mapping[str, str] | None = None
    """Digests of the tools that an operator has accepted. None: all are."""

    def maybe_left_out(self, tool: ListedTool) -> str | None:
        """Return why a tool is not offered. None: it is. Patterns match its original name, `deny` takes precedence."""
        if any(pattern.search(tool.name) for pattern in self.deny):
            return DENIED
        if self.allow and not any(pattern.search(tool.name) for pattern in self.allow):
            return NOT_ALLOWED
        if self.read_only and not tool.is_read_only:
            return NOT_READ_ONLY
        if self.pins is not None and self.pins.get(tool.name) != tool.digest:
            return CHANGED if tool.name in self.pins else NOT_PINNED
        return None


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    """The name in requests: `bmcp_<server>_<tool>`, valid for every provider."""
    original_name: str
    server_name: str
    server_url: str | None
    """The URL without its query; None for a program."""
    description: str
    input_schema: dict[str, Any]
    """The JSON Schema, as every provider takes it."""
    original_keys: Mapping[str, str] = field(default_factory=dict)
    """Property keys that were renamed, each with the server's own."""


@dataclass(frozen=True)
class Catalog:
    """Tools sorted by name, so that the same request always has the same bytes."""

    tools: tuple[Tool, ...] = ()

    def get(self, name: str) -> Tool | None:
        return self._by_name.get(name)

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self._by_name)

    def without(self, servers: frozenset[str]) -> Catalog:
        """Return the catalogue without the tools of some servers. All others keep their names."""
        if not servers:
            return self
        view = self._views.get(servers)
        if view is None:
            view = Catalog(tuple(tool for tool in self.tools if tool.server_name not in servers))
            if len(self._views) < MAX_VIEWS:
                self._views[servers] = view
        return view

    @cached_property
    def injected(self) -> tuple[InjectedTool, ...]:
        return tuple(InjectedTool(tool.name, tool.description, tool.input_schema) for tool in self.tools)

    def schema_bytes(self, injection: Injection, names: Iterable[str]) -> dict[str, int]:
        """Return how many bytes the definitions of these tools take in a request, by server."""
        if injection.form not in self._sizes:
            self._sizes[injection.form] = {tool.name: len(injection.definition(tool)) for tool in self.injected}
        sizes, found = self._sizes[injection.form], Counter[str]()
        for name in names:
            found[self._by_name[name].server_name] += sizes[name]
        return dict(found)

    @cached_property
    def reported(self) -> set[str]:
        """Forms in which a request had no room for all tools, and about which a line was logged."""
        return set()

    @cached_property
    def _views(self) -> dict[frozenset[str], Catalog]:
        return {}

    @cached_property
    def _sizes(self) -> dict[str, dict[str, int]]:
        return {}

    @cached_property
    def _by_name(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.tools}


def build(listings: Iterable[Listing]) -> Catalog:
    """Build the catalogue of all servers' tools. If a server lists a name twice, the first tool counts."""
    selected: dict[naming.Pair, tuple[Listing, ListedTool]] = {}
    for listing in listings:
        for listed in listing.tools:
            if listing.maybe_left_out(listed) is None:
                selected.setdefault((listing.server_name, listed.name), (listing, listed))
    names = naming.assign(selected)
    tools = (
        Tool(
            name=names[pair],
            original_name=listed.name,
            server_name=listing.server_name,
            server_url=listing.server_url,
            description=listed.description,
            input_schema=listed.input_schema,
            original_keys=listed.original_keys,
        )
        for pair, (listing, listed) in selected.items()
    )
    return Catalog(tuple(sorted(tools, key=lambda tool: tool.name)))


def admit(listed: Iterable[ListedTool]) -> tuple[tuple[ListedTool, ...], tuple[LeftOut, ...]]:
    """Return the tools that can be offered to a model, and the others.

    Schemas are mended: see `schemas`.
    """
    admitted: dict[str, ListedTool] = {}
    left_out: list[LeftOut] = []
    for tool in listed:
        if problem := _maybe_problem(tool, admitted):
            left_out.append(LeftOut(tool.name, problem))
            continue
        try:
            mended = schemas.mend(tool.input_schema)
        except Exception as e:
            logger.exception("aibridge: an internal error leaves out the tool %r", tool.name[:60])
            left_out.append(LeftOut(tool.name, f"its schema cannot be mended: {type(e).__name__}"))
        else:
            definition = json.dumps({"description": tool.description, "inputSchema": tool.input_schema}, sort_keys=True)
            admitted[tool.name] = replace(
                tool,
                input_schema=mended.schema,
                original_keys=mended.original_keys,
                definition=definition,
                digest=hashlib.sha256(definition.encode()).hexdigest(),
            )
    return tuple(admitted.values()), tuple(left_out)


def _maybe_problem(tool: ListedTool, admitted: Mapping[str, ListedTool]) -> str | None:
    if len(admitted) >= MAX_TOOLS:
        return f"more than {MAX_TOOLS} tools"
    if not 0 < len(tool.name) <= MAX_NAME:
        return f"a name of {len(tool.name)} characters"
    if tool.name in admitted:
        return "a second one of this name"
    try:
        size = len(json.dumps(tool.input_schema).encode())
    except (RecursionError, TypeError, ValueError):
        return "a schema that cannot be written"
    return f"a schema of {size} bytes" if size > MAX_SCHEMA else None
