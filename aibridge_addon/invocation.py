"""A call of an injected tool that has been run, as the record and the loop see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aibridge_addon.dialects.turns import Result


class InvokedTool(Protocol):
    """What the record says of a tool."""

    @property
    def original_name(self) -> str: ...
    @property
    def server_name(self) -> str: ...
    @property
    def server_url(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Invocation:
    """A call that has been run."""

    result: Result
    tool: InvokedTool | None
    """None: it was gone by then."""
    error: str | None
    """Why there is no result, or what the tool itself said was wrong."""
    duration_ms: int
