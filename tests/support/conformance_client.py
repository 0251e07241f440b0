"""The client that the conformance suite of the MCP project tests: the bridge's connections, without a bridge.

    python -P conformance_client.py URL

It connects, lists the tools, and calls each with numbers.
"""

from __future__ import annotations

import asyncio
import sys

from pydantic import SecretStr

from aibridge_addon.config.schema import HttpServer
from aibridge_addon.tools.servers import Servers

WITHIN = 60.0


async def main(url: str) -> None:
    servers = Servers({"suite": HttpServer(url=SecretStr(url))})
    servers.start()
    try:
        await servers.connected(WITHIN)
        for tool in servers.catalog.tools:
            await servers.call(tool, {"a": 5, "b": 3}, WITHIN)
    finally:
        await servers.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
