"""Resolve the names that clients ask for, so that a name whose servers are silent costs no other client.

The system's resolver blocks a thread for each name, for half a minute if no server answers. asyncio runs it in the
threads of `asyncio.to_thread`, of which there are few. Here, each lookup has a thread of its own; their number is
limited for each client and in all, and names of the configuration are always looked up. What could not be resolved is
remembered for a while. If a name that was resolved before cannot be looked up now, its last addresses are used.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from aibridge_addon.config.schema import Limits
from aibridge_addon.proxy.connection.addresses import address_of, maybe_address
from aibridge_addon.proxy.connection.threads import on_thread

logger = logging.getLogger(__name__)

DEFAULT_LIMITS = Limits()

Lookup = Callable[[str], Sequence[str]]
"""Returns the addresses of a name in the order to try them. Blocks. Raises OSError or ValueError."""

MAX_OTHER_LOOKUPS = 64
"""Names looked up at the same time for connections of mitmproxy and other addons, which no client has asked for."""
SILENT_FOR = 30.0
"""Seconds that a name is not looked up again after a lookup that took too long."""
CONFIGURED_FAILED_FOR = 1.0
"""Seconds instead of both for names of the configuration."""
STALE_FOR = 600.0
"""Seconds that the addresses of a name are used if it cannot be looked up."""
FRESH_FOR = 5.0
"""Seconds between a check of a name and the connection for which it was made."""
MAX_NAMES = 4096
"""Maximum number of names that are remembered as resolved, and as failed."""


THREAD = "aibridge-names"
"""Name of the threads."""


class Unresolved(Exception):
    """The name has no address, or the resolver did not answer in time."""


class _Known(NamedTuple):
    addresses: Sequence[str]
    at: float
    """The time of the lookup."""
    chosen: float
    """The last time at which a request was given them."""


class Names:
    """Used on one event loop."""

    def __init__(
        self,
        lookup: Lookup | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """`lookup`: default the system's resolver."""
        self.limits = limits
        self.configured: Collection[str] = frozenset()
        """Names of the configuration, for which no limit counts."""
        self._lookup = lookup or _addresses
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._failed: OrderedDict[str, float] = OrderedDict()
        """The time until which a name is not looked up."""
        self._running: dict[str, asyncio.Future[None]] = {}
        self._of_client: Counter[str] = Counter()
        self._others = 0
        """Running lookups of names that are not in `_running`."""

    async def resolve(self, client: str, host: str) -> Sequence[str]:
        """Return the addresses of a name in the order to try them. Raises Unresolved.

        `client`: the address of the client that asks for it.
        """
        if self._failed.get(host, 0.0) > self._clock():
            return self._stale(host, "it could not be resolved a moment ago")
        running = self._running.get(host)
        if running is None:
            limits = self.limits
            is_full = self._of_client[client] >= limits.lookups_per_client or len(self._running) >= limits.lookups
            if is_full and host not in self.configured:
                return self._stale(host, "too many names are looked up")
            running = self._start(client, host)
        await asyncio.wait({running}, timeout=self.limits.lookup_timeout)
        if not running.done():
            self._fail(host, SILENT_FOR)
            return self._stale(host, "the resolver did not answer in time")
        known = self._known.get(host)
        if known is None or host in self._failed:
            return self._stale(host, "no address")
        return known.addresses

    async def check(self, data: ServerConnectionHookData) -> None:
        """Refuse a connection whose name cannot be resolved. Otherwise asyncio finds its addresses with `answer`."""
        server = data.server
        if server.address is None or server.transport_protocol != "tcp" or maybe_address(server.address[0]) is not None:
            return
        try:
            await self.resolve(address_of(data.client), server.address[0])
        except Unresolved:
            server.error = "the host's name cannot be resolved"

    def answer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have this event loop look names up here. uvloop does not allow that, and has threads of its own for it."""
        own = self._getaddrinfo
        with suppress(AttributeError):
            loop.getaddrinfo = own  # type: ignore[method-assign,assignment]

    async def _getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Sequence[Any]:
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
        known = self._known.get(name)
        if known is not None and self._clock() - known.chosen < FRESH_FOR:
            found = []
            for address in known.addresses:
                with suppress(socket.gaierror):  # not of this family
                    found += socket.getaddrinfo(address, port, family, type, proto, flags | socket.AI_NUMERICHOST)
            if found:
                return found
        if self._others >= MAX_OTHER_LOOKUPS and name not in self.configured:
            raise socket.gaierror(socket.EAI_AGAIN, "too many names are looked up")
        self._others += 1
        answered: asyncio.Future[Sequence[Any]] = on_thread(
            THREAD, lambda: socket.getaddrinfo(host, port, family, type, proto, flags)
        )
        answered.add_done_callback(self._other_ended)
        return await asyncio.shield(answered)  # who waits may be cancelled, and the thread goes on

    def _other_ended(self, found: asyncio.Future[Sequence[Any]]) -> None:
        self._others -= 1
        if not found.cancelled():
            found.exception()  # it is no news if nothing waits for it any more

    # --- lookups ----------------------------------------------------------------------------------------------

    def _start(self, client: str, host: str) -> asyncio.Future[None]:
        ended = self._running[host] = asyncio.get_running_loop().create_future()
        self._of_client[client] += 1
        looked_up = on_thread(THREAD, lambda: self._lookup(host))

        def end(found: asyncio.Future[Sequence[str]]) -> None:
            del self._running[host]
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]
            error = found.exception()
            if error is None and (addresses := list(dict.fromkeys(found.result()))):
                self._failed.pop(host, None)
                _put(self._known, host, _Known(addresses, self._clock(), self._clock()))
            else:
                if error is not None and not isinstance(error, OSError | ValueError):
                    logger.error("aibridge: a name could not be looked up: %s", type(error).__name__)
                self._fail(host, self.limits.lookup_failed)
            ended.set_result(None)

        looked_up.add_done_callback(end)
        return ended

    def _fail(self, host: str, seconds: float) -> None:
        _put(self._failed, host, self._clock() + (CONFIGURED_FAILED_FOR if host in self.configured else seconds))

    def _stale(self, host: str, reason: str) -> Sequence[str]:
        known = self._known.get(host)
        if known is None or self._clock() - known.at >= STALE_FOR:
            raise Unresolved(reason)
        self._known[host] = known._replace(chosen=self._clock())
        return known.addresses


def _put[Value](entries: OrderedDict[str, Value], key: str, value: Value) -> None:
    entries.pop(key, None)
    entries[key] = value
    if len(entries) > MAX_NAMES:
        entries.popitem(last=False)


def _addresses(host: str) -> Sequence[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]
