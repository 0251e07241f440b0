"""What databases return to the rest of the bridge, and their one error."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


class DatabaseUnavailable(Exception):
    """The database cannot be reached now. A later attempt may succeed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A continuation as the database returns it."""

    value: bytes
    """JSON."""
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Spent:
    """What the requests of one actor to one model of one provider have used."""

    actor: str
    groups: str | None
    """The groups that the requests named, separated by commas. None: only those of the configuration."""
    provider: str
    """The configured instance."""
    model: str
    """The model of the request."""
    usd: float = 0.0
    tokens: int = 0
    requests: int = 0
    unpriced: int = 0
    """Number of token rows without a cost."""
