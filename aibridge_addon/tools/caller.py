"""Who a call runs for, as its MCP server is informed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ACTOR_HEADER = "X-AI-Bridge-Actor-ID"
METADATA_HEADER = "X-AI-Bridge-Actor-Metadata-"
"""The same headers as for providers."""
META_PREFIX = "aibridge/"
"""Of our members in a request's `_meta` (MCP specification, section `_meta`: an optional prefix, then a slash)."""


@dataclass(frozen=True, slots=True)
class Caller:
    actor: str
    interception_id: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The actor's, by name."""
    anonymous: bool = False
    """Whether anyone on the network can have this name."""

    def meta(self) -> dict[str, str]:
        """Return the members of a request's `_meta`."""
        return {
            f"{META_PREFIX}actor_id": printable(self.actor),
            f"{META_PREFIX}interception_id": self.interception_id,
        }

    def headers(self) -> dict[str, bytes]:
        """Return the headers that name the actor, in UTF-8."""
        named = {f"{METADATA_HEADER}{name}": str(value) for name, value in self.metadata.items()}
        return {name: printable(value).strip().encode() for name, value in {ACTOR_HEADER: self.actor, **named}.items()}


def printable(text: str) -> str:
    """Replace line breaks, control characters and half characters. A client chooses the name of its actor."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
