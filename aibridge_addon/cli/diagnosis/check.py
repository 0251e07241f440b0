"""What one check of `aibridge doctor` has found."""

from __future__ import annotations

from dataclasses import dataclass

from aibridge_addon.telemetry.log.text import one_line

MAX_TEXT = 400
"""Characters of a text that comes from a program or a server."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    found: str
    next_step: str = ""
    """What to do. Where `ok`, this makes it a warning."""
    advice: str = ""
    """More of what to do, which other checks may have in the same words."""

    @property
    def whole_step(self) -> str:
        return f"{self.next_step}: {self.advice}" if self.advice else self.next_step

    @property
    def is_warning(self) -> bool:
        return self.ok and bool(self.next_step)


def shown(text: object) -> str:
    """Return a text of others in one line that cannot control a terminal."""
    return one_line(str(text), MAX_TEXT)
