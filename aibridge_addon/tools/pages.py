"""Fetch the whole list of a server's tools."""

from __future__ import annotations

import logging

from mcp import Client

from aibridge_addon.tools import catalog, listing, messages
from aibridge_addon.tools.catalog import LeftOut, ListedTool

logger = logging.getLogger(__name__)

MAX_PAGES = 100
"""Maximum number of pages of one listing."""


async def fetch(client: Client, server_name: str) -> tuple[tuple[ListedTool, ...], tuple[LeftOut, ...]]:
    """Return the tools that can be offered, and the others.

    Raises:
        MCPError, ValidationError: a page cannot be fetched.
    """
    if client.server_capabilities.tools is None:
        return (), ()
    listed: list[ListedTool] = []
    left_out: list[LeftOut] = []
    cursors: set[str | None] = set()
    cursor: str | None = None
    count = 0
    while cursor not in cursors:
        if len(cursors) == MAX_PAGES:
            logger.warning("MCP server %s: its list of tools has more than %d pages", server_name, MAX_PAGES)
            break
        cursors.add(cursor)
        page = await client.list_tools(cursor=cursor)
        result = messages.result_of(page)
        tools, odd = listing.read(result, count)
        count += len(result["tools"])
        left_out += odd
        valid = {tool.name for tool in page.tools}  # the library drops tools whose headers are not valid
        listed += (tool for tool in tools if tool.name in valid)
        left_out += (LeftOut(tool.name, "inputSchema: x-mcp-header") for tool in tools if tool.name not in valid)
        cursor = page.next_cursor
        if not cursor or len(listed) > catalog.MAX_TOOLS:
            break
    admitted, refused = catalog.admit(listed)
    return admitted, (*left_out, *refused)
