"""Definitions of tools that an operator has accepted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolPin:
    """A tool of an MCP server as it was seen first, or as it was approved last."""

    server_name: str
    tool: str
    digest: str
    """SHA-256 of the whole definition, in hexadecimal."""
    definition: str
    """Description and input schema as JSON, up to `MAX_DEFINITION` characters, to show what has changed."""


MAX_DEFINITION = 16 << 10
