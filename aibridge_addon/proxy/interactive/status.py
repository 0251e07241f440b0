"""What the commands `aibridge.status` and `aibridge.tools` show."""

from __future__ import annotations

from collections.abc import Sequence

from aibridge_addon.bridge import Bridge
from aibridge_addon.wire.printable import printable

MAX_DESCRIPTION = 100
"""Characters of a tool's description."""


def status(bridge: Bridge | None) -> Sequence[str]:
    """Return one line for each fact about the bridge."""
    if bridge is None:
        return ["aibridge is not running: its configuration is wrong"]
    settings, servers = bridge.settings, bridge.servers
    listen = settings.metrics.listen
    return [
        f"database: {settings.database}",
        f"records that wait: {bridge.stream.depth}, lost: {bridge.stream.lost}",
        "metrics: {}:{}".format(*listen) if listen is not None else "metrics: off",
        f"traces: {'on' if bridge.traces is not None else 'off'}",
        *(f"provider {provider.name}: {provider.type}, {', '.join(provider.hosts)}" for provider in settings.providers),
        f"tools: {len(servers.catalog.tools) if servers is not None else 0}",
    ]


def tools(bridge: Bridge | None) -> Sequence[str]:
    """Return one line for each tool that is injected."""
    if bridge is None or bridge.servers is None:
        return ["no MCP servers are configured"]
    offered = bridge.servers.catalog.injected
    lines = [f"{tool.name}: {' '.join(tool.description.split())[:MAX_DESCRIPTION]}" for tool in offered]
    return [printable(line) for line in lines] or ["no MCP server is connected"]
