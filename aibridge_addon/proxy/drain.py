"""Ending without cutting anybody off: stop accepting, let answers finish, write everything, then exit."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator

from mitmproxy import ctx
from mitmproxy.addons.proxyserver import Proxyserver

from aibridge_addon.bridge import Bridge
from aibridge_addon.interception import in_flight

logger = logging.getLogger(__name__)

POLL = 0.02
"""Seconds between looks at sockets that still have bytes to send."""
WRITE_TIMEOUT = 10.0
"""Seconds that the last records may take to be written."""


class Drain:
    """Takes over the signals that end the process."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._task: asyncio.Task[None] | None = None

    def take_signals(self) -> None:
        """Drain on SIGTERM and SIGINT, a second one ends at once. On SIGINT the console asks the person: left to it."""
        loop = asyncio.get_running_loop()
        signals = [signal.SIGTERM]
        if not hasattr(ctx.master, "prompt_for_exit"):
            signals.append(signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self.begin)

    def begin(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())
        else:
            ctx.master.shutdown()

    async def _drain(self) -> None:
        timeout = self._bridge.settings.drain_timeout
        self._bridge.draining = True
        waited_for = in_flight.everywhere()
        logger.info("draining: %d requests under way, at most %s s", sum(map(len, waited_for)), timeout)
        try:
            async with asyncio.timeout(timeout):
                await _stop_accepting()
                for requests in waited_for:
                    await requests.wait()
                while any(_unsent()):  # noqa: ASYNC110 (transports do not say when they are empty)
                    await asyncio.sleep(POLL)
        except TimeoutError:
            logger.warning("drain timeout: %d requests are cut off", sum(map(len, waited_for)))
            for requests in waited_for:
                requests.cut_off()
        await self._bridge.close(WRITE_TIMEOUT)
        ctx.master.shutdown()


def _proxyserver() -> Proxyserver:
    server = ctx.master.addons.get("proxyserver")
    assert isinstance(server, Proxyserver)
    return server


async def _stop_accepting() -> None:
    for instance in _proxyserver().servers:
        if instance.is_running:
            await instance.stop()


def _unsent() -> Iterator[int]:
    """Bytes that wait in each client's socket."""
    for handler in list(_proxyserver().connections.values()):
        transport = handler.transports.get(handler.client)
        writer = transport.writer if transport is not None else None
        if isinstance(writer, asyncio.StreamWriter):
            yield writer.transport.get_write_buffer_size()
