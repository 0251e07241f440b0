"""MCP servers whose tools are there from the start, without a connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aibridge_addon.bridge import Bridge
from aibridge_addon.interception.continuations import Continuations
from aibridge_addon.recording.reader import AsyncReader
from aibridge_addon.recording.sqlite.reader import SqliteReader
from aibridge_addon.records import utc_now
from aibridge_addon.tools import catalog
from aibridge_addon.tools.catalog import Catalog, ListedTool, Listing
from aibridge_addon.tools.servers import Servers

RESULT = {"content": [{"type": "text", "text": "a small house"}]}


class OfferedTools(Servers):
    """The tools of a server `ours`. Each call of them has the same result."""

    def __init__(self, *names: str) -> None:
        super().__init__({})
        self._offered = catalog.build([Listing("ours", None, tools=[ListedTool(name, "", {}) for name in names])])

    @property
    def catalog(self) -> Catalog:
        return self._offered

    async def call(self, *_: Any, **__: Any) -> Any:
        return RESULT


def offer(bridge: Bridge, database: Path, *names: str) -> None:
    """Let a bridge without MCP servers offer tools with these names."""
    bridge.servers = OfferedTools(*names)
    bridge.continuations = Continuations(AsyncReader(SqliteReader(database)), now=utc_now)
