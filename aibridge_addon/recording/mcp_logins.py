"""Logins of people at MCP servers in the database, which all processes share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aibridge_addon.recording.reader import answer_of
from aibridge_addon.records.mcp_logins import McpLoginStore

TIMEOUT = 10.0
"""Seconds. Maximum time of a query."""


class McpLogins:
    """Runs queries on a thread of its own. Implements `mcp_logins.Database`."""

    def __init__(self, store: McpLoginStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="aibridge-mcp-logins")

    async def use[Result](self, query: Callable[[McpLoginStore], Result]) -> Result:
        """Return the result of a query. Raises DatabaseUnavailable."""
        return await answer_of(lambda: query(self._store), self._threads, TIMEOUT)

    def close(self) -> None:
        self._store.close()
