"""Which MCP servers' tools an actor may use. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache

from aibridge_addon.config.tool_actors import GROUP_MARK, ToolActors
from aibridge_addon.interception.actors import MAX_KNOWN, Actor


class ToolAccess:
    """Decides by an actor's id and groups, so that the same actor gets the same tools in each request."""

    def __init__(self, rules: Mapping[str, ToolActors]) -> None:
        """`rules`: by the name of their server."""
        self._rules = {name: each for name, each in rules.items() if each.allow or each.deny}
        self._hidden = lru_cache(MAX_KNOWN)(self._hidden_from)

    def hidden(self, actor: Actor) -> frozenset[str]:
        """Return the servers whose tools the actor may not use."""
        return self._hidden(actor.id, actor.groups) if self._rules else frozenset()

    def _hidden_from(self, id: str, groups: tuple[str, ...]) -> frozenset[str]:
        return frozenset(name for name, each in self._rules.items() if not permits(each, id, groups))


def permits(rules: ToolActors, id: str, groups: tuple[str, ...]) -> bool:
    def matches(pattern: str) -> bool:
        if pattern.startswith(GROUP_MARK):
            return any(fnmatchcase(group, pattern.removeprefix(GROUP_MARK)) for group in groups)
        return fnmatchcase(id, pattern)

    return not any(map(matches, rules.deny)) and (not rules.allow or any(map(matches, rules.allow)))
