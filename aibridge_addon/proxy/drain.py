"""End all bridges of this process in an orderly way.

A stop accepts no more connections, waits for the answers under way, writes every record, and exits. A reload of the
script replaces mitmproxy's addon and its bridge, but not this object. So a stop also waits for the requests of
replaced bridges.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Iterator, Sequence

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
    """Registered as an addon with mitmproxy's master, so that the next load of the script finds it by name."""

    name = "aibridge_drain"

    def __init__(self) -> None:
        self._bridges: list[Bridge] = []
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of_master(cls) -> Drain:
        """Return the running master's object. The first call creates it."""
        drain = ctx.master.addons.get(cls.name)
        if drain is None:
            drain = ctx.master.addons.register(cls())
        assert isinstance(drain, Drain)
        return drain

    @property
    def bridges(self) -> list[Bridge]:
        """The current bridge, and retired ones that still have requests or unwritten records."""
        self._bridges = [bridge for bridge in self._bridges if not bridge.ended]
        return list(self._bridges)

    def add(self, bridge: Bridge) -> None:
        """Register a bridge that has started."""
        self._bridges = [*self.bridges, bridge]
        bridge.draining = self._task is not None

    def take_signals(self) -> None:
        """Drain on SIGTERM and SIGINT; a second signal ends at once.

        mitmproxy's console keeps SIGINT, because it asks for confirmation.
        """
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

    def close_now(self, timeout: float) -> None:
        """End every bridge, and block for at most `timeout` seconds for each."""
        for bridge in self.bridges:
            bridge.close_now(timeout)

    async def _drain(self) -> None:
        timeout = self._bridges[-1].settings.drain_timeout if self._bridges else 0
        for bridge in self.bridges:
            bridge.draining = True
        logger.info(
            "draining: requests under way: %s, for at most %s s; a second Ctrl-C or SIGTERM ends at once",
            self._under_way(),
            timeout,
        )
        try:
            async with asyncio.timeout(timeout):
                await _stop_accepting()
                # Look them up each time, because a reload may add a bridge meanwhile.
                while busy := [bridge for bridge in self.bridges if bridge.in_flight]:
                    await _emptied(busy[0].in_flight)
                while any(_unsent()):  # noqa: ASYNC110 (transports do not say when they are empty)
                    await asyncio.sleep(POLL)
        except TimeoutError:
            logger.warning("drain timeout: requests are cut off: %s", self._under_way())
            for bridge in self.bridges:
                bridge.in_flight.cut_off()
        try:
            await asyncio.gather(*(bridge.close(WRITE_TIMEOUT) for bridge in self.bridges))
        finally:
            ctx.master.shutdown()

    def _under_way(self) -> str:
        """Return the number of requests, and for whom each one is."""
        return summary([each for bridge in self.bridges for each in bridge.in_flight.descriptions()])


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
