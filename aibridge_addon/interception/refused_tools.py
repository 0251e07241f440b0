"""Remember the tools that a provider has refused, and the models that accept no tools. Sans-io, bounded.

A tool is known by its definition: it is offered again as soon as its server describes it otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from aibridge_addon.dialects.turns import InjectedTool, Injection

Key = tuple[str, str, str]
"""The provider's name, what is refused (tools in a dialect, or a model), and its name."""
MODEL = "model"


class RefusedTools:
    def __init__(self, limit: int = 4096) -> None:
        """`limit`: entries that are kept. The oldest are forgotten, because clients choose the names of models."""
        self._known: dict[Key, bytes] = {}
        self._limit = limit

    def accepted(self, provider: str, injection: Injection, tools: Sequence[InjectedTool]) -> Sequence[InjectedTool]:
        """Return the tools that this provider has not refused."""
        if not self._known:
            return tools
        return [tool for tool in tools if not self._is_refused(provider, injection, tool)]

    def _is_refused(self, provider: str, injection: Injection, tool: InjectedTool) -> bool:
        refused = self._known.get((provider, type(injection).__name__, tool.name))
        return refused is not None and refused == _digest(injection, tool)

    def add(self, provider: str, injection: Injection, tool: InjectedTool) -> None:
        self._put((provider, type(injection).__name__, tool.name), _digest(injection, tool))

    def takes_none(self, provider: str, model: str) -> bool:
        """Return whether a model accepts no tools."""
        return (provider, MODEL, model) in self._known

    def add_model(self, provider: str, model: str) -> None:
        """Remember that a model accepts no tools."""
        self._put((provider, MODEL, model), b"")

    def names(self, provider: str) -> tuple[str, ...]:
        """Return the names of the tools that this provider has refused."""
        return tuple(name for of, kind, name in self._known if of == provider and kind != MODEL)

    def _put(self, key: Key, value: bytes) -> None:
        self._known.pop(key, None)
        self._known[key] = value
        while len(self._known) > self._limit:
            del self._known[next(iter(self._known))]


def _digest(injection: Injection, tool: InjectedTool) -> bytes:
    return hashlib.sha256(injection.definition(tool)).digest()
