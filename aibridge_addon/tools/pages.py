"""Fetch the whole list of a server's tools."""

from __future__ import annotations

import logging

from mcp import Client

from aibridge_addon.tools import catalog, listing, messages
from aibridge_addon.tools.catalog import LeftOut, ListedTool
from aibridge_addon.tools.fair_share import LARGE, Worker, is_large
from aibridge_addon.tools.held import HeldResults
from aibridge_addon.tools.message_json import MORE

logger = logging.getLogger(__name__)

MAX_PAGES = 100
"""Maximum number of pages of one listing."""
MAX_LEFT_OUT = 1000
"""Tools that are named as left out."""
AT_ONCE = 20
"""Tools. More are prepared in a thread."""


async def fetch(
    client: Client, server_name: str, worker: Worker, held: HeldResults
) -> tuple[tuple[ListedTool, ...], tuple[LeftOut, ...]]:
    """Return the tools that can be offered, and the others. Of these at most `MAX_LEFT_OUT`, and how many more.

    Raises:
        MCPError, ValidationError: a page cannot be fetched.
    """
    if client.server_capabilities.tools is None:
        return (), ()
    listed: list[ListedTool] = []
    left_out: list[LeftOut] = []
    cursors: set[str | None] = set()
    cursor: str | None = None
    count = more = 0
    while cursor not in cursors:
        if len(cursors) == MAX_PAGES:
            logger.warning("MCP server %s: its list of tools has more than %d pages", server_name, MAX_PAGES)
            break
        cursors.add(cursor)
        page = await client.list_tools(cursor=cursor)
        result = messages.result_of(page, held)
        tools, odd = listing.read(result, count)
        count += len(result["tools"])
        more += result[MORE]
        left_out += odd
        valid = {tool.name for tool in page.tools}  # the library drops tools whose headers are not valid
        listed += (tool for tool in tools if tool.name in valid)
        left_out += (LeftOut(tool.name, "inputSchema: x-mcp-header") for tool in tools if tool.name not in valid)
        cursor = page.next_cursor
        if not cursor or max(len(listed), len(left_out)) > catalog.MAX_TOOLS:
            break
    size = LARGE + 1 if len(listed) > AT_ONCE or is_large([tool.input_schema for tool in listed]) else 0
    admitted, refused = await worker.run(size, catalog.admit, listed)
    return admitted, _bounded((*left_out, *refused), more)


def _bounded(left_out: tuple[LeftOut, ...], more: int) -> tuple[LeftOut, ...]:
    more += max(0, len(left_out) - MAX_LEFT_OUT)
    return (*left_out[:MAX_LEFT_OUT], *([LeftOut(f"{more} further tools", "too many")] if more else []))
