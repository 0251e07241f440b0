"""What people who log in at MCP servers have in the database. All contents are encrypted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["link", "login"]
"""How far a login is: a link was shown, or the person is at the authorization server."""


@dataclass(frozen=True, slots=True)
class StoredToken:
    """An actor's token of a server."""

    server_name: str
    actor: str
    content: str
    version: str
    """Changes with each content."""


@dataclass(frozen=True, slots=True)
class StoredLogin:
    """A login that has not ended. An actor has at most one in each stage for each server."""

    server_name: str
    actor: str
    content: str
