"""Tools that are offered only as an operator has accepted them: servers with `pin: true`.

a server's list ─▶ check ─▶ the database: pins what is new, returns all digests ─▶ publish
                     └── every `CHECKED_EVERY` seconds, while a tool differs from its pin or the database is away
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aibridge_addon.records.tool_pins import MAX_DEFINITION, ToolPin
from aibridge_addon.tools.catalog import ListedTool
from aibridge_addon.wire.printable import printable_line

logger = logging.getLogger(__name__)

CHECKED_EVERY = 10.0
"""Seconds after which an approval counts."""
MAX_NAMED = 5
"""Tools that a log line names."""

Pinned = Callable[[str, Sequence[ToolPin]], Awaitable[Mapping[str, str]]]
"""Pin the tools of a server that have no pin, and return the digests of all pins. May raise any exception."""


def pin_of(server_name: str, tool: ListedTool) -> ToolPin:
    return ToolPin(server_name, _stored(tool.name), tool.digest, tool.definition[:MAX_DEFINITION])


def _stored(name: str) -> str:
    """Return a name that every database can store. Hardly any other name is a tool's."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return ascii(name)
    return name.replace("\0", "\\0")


class Pins:
    """The pins of one server. Used on one event loop."""

    def __init__(
        self, server_name: str, pinned: Pinned, publish: Callable[[], None], checked_every: float = CHECKED_EVERY
    ) -> None:
        self.digests: Mapping[str, str] = {}
        """By the tools' own names."""
        self.read = asyncio.Event()
        """Whether the database has been asked once."""
        self._server_name = server_name
        self._pinned = pinned
        self._publish = publish
        self._checked_every = checked_every
        self._tools: Sequence[ListedTool] = ()
        self._task: asyncio.Task[None] | None = None
        self._reported: object = None

    def check(self, tools: Sequence[ListedTool]) -> None:
        """Compare a list of tools with their pins, in the background."""
        if tools == self._tools and (self._task is not None or self._agrees()):
            return
        self._tools = tools
        self.stop()
        if tools:
            self._task = asyncio.get_running_loop().create_task(self._watch(tools))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _agrees(self) -> bool:
        return all(self.digests.get(tool.name) == tool.digest for tool in self._tools)

    async def _watch(self, tools: Sequence[ListedTool]) -> None:
        pins = [pin_of(self._server_name, tool) for tool in tools]
        while True:
            try:
                found = await self._pinned(self._server_name, pins)
            except Exception as e:  # noqa: BLE001 (the tools stay left out; the next attempt follows)
                self._report("its pins cannot be read, its tools are left out: %s", str(e))
            else:
                names = {_stored(tool.name): tool.name for tool in tools}
                self.digests = {names.get(tool, tool): digest for tool, digest in found.items()}
                changed = [tool.name for tool in tools if self.digests.get(tool.name) != tool.digest]
                self._report(
                    "tools have changed since they were pinned, and are left out until aibridge tools approve: %s",
                    ", ".join(repr(name[:60]) for name in changed[:MAX_NAMED]),
                )
            self.read.set()
            self._publish()
            if self._agrees():
                self._task = None
                return
            await asyncio.sleep(self._checked_every)

    def _report(self, text: str, what: str) -> None:
        """Log a problem once. An empty text is none."""
        if what and what != self._reported:
            logger.warning("MCP server %s: " + text, self._server_name, printable_line(what))
        self._reported = what
