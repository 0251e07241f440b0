"""Which actors an MCP server's tools are offered to: `mcp.servers.<name>.actors`."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from aibridge_addon.config.budgets import Patterns
from aibridge_addon.config.errors import rejected
from aibridge_addon.config.values import Section

GROUP_MARK = "@"
"""A pattern that begins with it is matched against the actor's groups."""


class ToolActors(Section):
    """Patterns of a shell. `@` begins a pattern of groups. `deny` wins, and an empty `allow` allows everyone."""

    allow: Patterns = ()
    deny: Patterns = ()

    @model_validator(mode="before")
    @classmethod
    def _with_keys(cls, data: Any) -> Any:
        if isinstance(data, str | list):
            raise rejected("a mapping with allow, deny or both: {allow: [alice, '@ops']}")
        return data

    @model_validator(mode="after")
    def _named_groups(self) -> ToolActors:
        for key in ("allow", "deny"):
            if GROUP_MARK in getattr(self, key):
                raise rejected(f"a group behind {GROUP_MARK}, such as @ops", at=(key,))
        return self
