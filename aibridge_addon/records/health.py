"""States that are read when they are asked for, not recorded when they change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerState:
    """The state of a configured MCP server."""

    name: str
    is_up: bool
    tools: int
    """Number of its tools that are offered."""
    left_out: int
    """Number of its tools that cannot be offered, such as those whose schema is too large."""
    required: bool = False
    """Whether no new request should come while it is away."""
    problem: str = ""
    """Why it is away. Empty: it is up, or connecting for the first time."""
    logged_in: bool | None = None
    """Whether an actor has logged in, so that the server's tools are known. None: actors do not log in there."""


@dataclass(frozen=True, slots=True)
class KeyPoolState:
    """How many central keys of a provider can be used."""

    provider_name: str
    valid: int
    rate_limited: int
    """They rest until the provider's `Retry-After` is over."""
    unauthorized: int
    """The provider does not accept them. They are tried again after a minute."""
