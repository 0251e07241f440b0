"""How long a stop may take. Process managers must wait at least that long before they kill."""

from __future__ import annotations

AFTER_DRAIN = 30.0
"""Seconds beside `drain_timeout`, in the worst case: MCP servers, dumps, a slow database, and the last rows."""
