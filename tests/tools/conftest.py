"""Servers under test on an event loop like mitmproxy's, and what they publish as something to wait for."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]
import pytest

from aibridge_addon.config.schema import HttpServer, StdioServer
from aibridge_addon.tools.catalog import Catalog, Tool
from aibridge_addon.tools.servers import Servers
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until

WITHIN = 60.0
"""Seconds that anything may take on a machine with too much to do."""


class Stage:
    """Servers that retry at once, and every catalogue that they publish."""

    def __init__(self, settings: Mapping[str, HttpServer | StdioServer], **options: Any) -> None:
        self._changed = asyncio.Event()
        self.delays: list[int] = []
        defaults: dict[str, Any] = {"backoff": self._backoff, "listed_every": 0.01}
        self.servers = Servers(settings, on_change=self._note, **(defaults | options))

    @property
    def catalog(self) -> Catalog:
        return self.servers.catalog

    async def until(self, check: Callable[[Catalog], bool]) -> Catalog:
        """Wait for a catalogue."""
        async with asyncio.timeout(WITHIN):
            while not check(self.catalog):
                self._changed.clear()
                await self._changed.wait()
        return self.catalog

    async def failures(self, count: int) -> None:
        """Wait until it was decided so many times to wait before the next attempt."""
        await self.until(lambda _: len(self.delays) >= count)

    async def tool(self, name: str) -> Tool:
        """Wait until a tool is offered."""
        catalog = await self.until(lambda catalog: name in catalog.names)
        found = catalog.get(name)
        assert found is not None
        return found

    async def call(self, name: str, /, **arguments: Any) -> str:
        """Call a tool that is or will be offered, and return all text of its result."""
        result = await self.servers.call(await self.tool(name), arguments, WITHIN)
        return "".join(block["text"] for block in result["content"] if block["type"] == "text")

    def _note(self, catalog: Catalog) -> None:
        self._changed.set()

    def _backoff(self, failures: int) -> float:
        self.delays.append(failures)
        self._changed.set()
        return 0.02


class Log(logging.Handler):
    """What `servers` logs, as something to look at and to wait for."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self._came = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._came.set()

    def said(self, text: str, level: int = logging.INFO) -> list[str]:
        """All lines of this level or above that hold a text."""
        lines = [record.getMessage() for record in self.records if record.levelno >= level]
        return [line for line in lines if text in line]

    async def line(self, text: str) -> str:
        """Wait for a line of any level."""
        return (await self.lines(text, 1))[0]

    async def lines(self, text: str, count: int, level: int = logging.DEBUG) -> list[str]:
        """Wait for so many lines of this level or above."""
        async with asyncio.timeout(WITHIN):
            while len(self.said(text, level)) < count:
                self._came.clear()
                await self._came.wait()
        return self.said(text, level)


@pytest.fixture
def log() -> Iterator[Log]:
    handler, logger = Log(), logging.getLogger("aibridge_addon.tools")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="session")
def ours() -> Iterator[HttpMcp]:
    """One server of ours for all tests that do not change it."""
    with HttpMcp() as server:
        yield server


class StartServers(Protocol):
    def __call__(self, settings: Mapping[str, HttpServer | StdioServer], **options: Any) -> Stage: ...


@pytest.fixture
async def start() -> AsyncIterator[StartServers]:
    """Start connections to these servers; they are closed after the test."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    async with AsyncExitStack() as stack:

        def start(settings: Mapping[str, HttpServer | StdioServer], **options: Any) -> Stage:
            stage = Stage(settings, **options)
            stage.servers.start()
            stack.push_async_callback(stage.servers.close)
            return stage

        yield start


def runs(pid: int) -> bool:
    """Whether a process is there, and is not a zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def ended(pid: int) -> None:
    """Wait for a process's end."""
    await asyncio.to_thread(poll_until, lambda: not runs(pid), WITHIN, what=f"the end of process {pid}")
