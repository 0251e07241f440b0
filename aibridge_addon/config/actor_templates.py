"""Texts of the configuration that name the actor of a call: `${actor}` and `${actor.metadata.team}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

PREFIX = "actor.metadata."


@dataclass(frozen=True, slots=True)
class ActorReference:
    name: str
    """What stands between the braces: `actor`, or `actor.metadata.` and a key."""

    @property
    def metadata(self) -> str | None:
        """The key of `actor.metadata`. None: this is the actor's name."""
        return self.name.removeprefix(PREFIX) if self.name.startswith(PREFIX) else None


class ActorTemplate(SecretStr):
    """A secret text with references to the actor. `get_secret_value` returns it as it is written."""

    def __init__(self, parts: Sequence[str | ActorReference]) -> None:
        super().__init__("".join(part if isinstance(part, str) else f"${{{part.name}}}" for part in parts))
        self.parts = tuple(parts)

    @property
    def metadata(self) -> tuple[str, ...]:
        """The keys of `actor.metadata` that it refers to."""
        return tuple(part.metadata for part in self.parts if isinstance(part, ActorReference) and part.metadata)

    def render(self, actor: str, metadata: Mapping[str, Any]) -> SecretStr:
        """Return the text for an actor."""

        def text(part: str | ActorReference) -> str:
            if isinstance(part, str):
                return part
            return actor if part.metadata is None else str(metadata.get(part.metadata, ""))

        return SecretStr("".join(map(text, self.parts)))
