"""End all bridges of this process in an orderly way.

A stop accepts no more connections, waits for the answers under way, writes every record, and exits. It also waits for
the requests of bridges that a reload has replaced.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from mitmproxy import ctx
from mitmproxy.addons.proxyserver import Proxyserver

from aibridge_addon.bridge import Bridge
from aibridge_addon.interception.in_flight import InFlight
from aibridge_addon.telemetry.log.text import one_line

logger = logging.getLogger(__name__)

POLL = 0.02
"""Seconds between checks whether the sockets have sent all their bytes."""
MAX_NAMED = 8
"""Different requests that the log of a stop names."""
MAX_DESCRIPTION = 80
"""Characters of a request's description there."""
WRITE_TIMEOUT = 10.0
"""Seconds. Maximum time for writing the last records."""


class Drain:
    """Used on one event loop."""

    def __init__(self, bridges: Callable[[], Sequence[Bridge]]) -> None:
        """`bridges` returns those that live now, the current one last."""
        self._bridges = bridges
        self._task: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        return self._task is not None

    def begin(self) -> None:
        """End in an orderly way. The second call ends at once."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())
        else:
            ctx.master.shutdown()

    async def _drain(self) -> None:
        bridges = self._bridges()
        timeout = bridges[-1].settings.drain_timeout if bridges else 0
        for bridge in bridges:
            bridge.draining = True
        if any(bridge.in_flight for bridge in bridges):
            logger.info(
                "draining: requests under way: %s, for at most %s s; a second Ctrl-C or SIGTERM ends at once",
                self._under_way(),
                timeout,
            )
        else:
            logger.info("draining: no requests under way")
        try:
            async with asyncio.timeout(timeout):
                await _stop_accepting()
                while busy := [bridge for bridge in self._bridges() if bridge.in_flight] or any(_unsent()):
                    if isinstance(busy, list):
                        await _emptied(busy[0].in_flight)
                    else:
                        await asyncio.sleep(POLL)  # transports do not say when they are empty
        except TimeoutError:
            logger.warning("drain timeout: requests are cut off: %s", self._under_way())
            for bridge in self._bridges():
                bridge.in_flight.cut_off()
        for bridge in self._bridges():
            bridge.refusing = True  # a connection that is still open may bring another request
        try:
            await asyncio.gather(*(bridge.close(WRITE_TIMEOUT) for bridge in self._bridges()))
        finally:
            ctx.master.shutdown()

    def _under_way(self) -> str:
        """Return the number of requests, and for whom each one is."""
        return summary([each for bridge in self._bridges() for each in bridge.in_flight.descriptions()])


def summary(descriptions: Sequence[str]) -> str:
    """Return the number of requests, and each description with its own number.

    Descriptions contain names that clients choose. The summary is one line that cannot control a terminal.
    """
    counts = Counter(one_line(each, MAX_DESCRIPTION) for each in descriptions)
    named = [each if count == 1 else f"{each} ({count})" for each, count in counts.most_common(MAX_NAMED)]
    if (rest := len(counts) - MAX_NAMED) > 0:
        named.append(f"{rest} more")
    return f"{len(descriptions)} ({', '.join(named)})" if named else "0"


async def _emptied(requests: InFlight) -> None:
    emptied = asyncio.Event()
    requests.when_empty(emptied.set)
    await emptied.wait()


def _proxyserver() -> Proxyserver:
    server = ctx.master.addons.get("proxyserver")
    assert isinstance(server, Proxyserver)
    return server


async def _stop_accepting() -> None:
    for instance in _proxyserver().servers:
        if instance.is_running:
            await instance.stop()


def _unsent() -> Iterator[int]:
    """Yield the number of unsent bytes of each client connection."""
    for handler in list(_proxyserver().connections.values()):
        transport = handler.transports.get(handler.client)
        writer = transport.writer if transport is not None else None
        if isinstance(writer, asyncio.StreamWriter):
            yield writer.transport.get_write_buffer_size()
