"""The one owner of bridges: the first start, reloads, and the end.

    configure ─▶ begin ─▶ current ──────────────────────────────▶ done: every bridge ends
                            ▲   └─ reload ─▶ new bridge, opened beside it ─┬─▶ current; the old one retires
    SIGHUP, main.py,        │                                              │
    an option ──────────────┘            it cannot start: the old one stays ┘

The object outlives the addon, which mitmproxy replaces when `main.py` is saved. A retired bridge serves the requests
that began with it, and ends after the last of them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Protocol

from mitmproxy import ctx
from mitmproxy.addons.script import Script

from aibridge_addon.bridge import Bridge
from aibridge_addon.config.errors import ConfigError
from aibridge_addon.config.schema import Settings
from aibridge_addon.proxy.connection.threads import on_thread
from aibridge_addon.proxy.drain import Drain
from aibridge_addon.proxy.gate import Gate
from aibridge_addon.proxy.terminals import Terminals
from aibridge_addon.records import DatabaseUnavailable
from aibridge_addon.records.memory import Memory

logger = logging.getLogger(__name__)

THREAD = "aibridge-reload"
"""Name of the thread on which the next bridge is opened. A database may keep it waiting when the process ends."""
CLOSE_TIMEOUT = 10.0
"""Seconds. Maximum time for writing the last records when mitmproxy ends without a signal."""


class Source(Protocol):
    """What a configuration is made from: a file, and options of mitmproxy. Equal sources name the same file."""

    def make(self) -> Bridge:
        """Read the configuration and create its bridge. May be called on any thread. Raises ConfigError."""

    def check(self, settings: Settings) -> None:
        """Check what depends on mitmproxy's other options. Called on the event loop. Raises ConfigError."""


class Life:
    """Registered as an addon with mitmproxy's master, so that the next load of the script finds it by name."""

    name = "aibridge_life"

    def __init__(self) -> None:
        self.addon: object = None
        """The addon that serves requests with the current bridge. None: mitmproxy has unloaded it."""
        self.current: Bridge | None = None
        """The bridge for new requests."""
        self.source: Source | None = None
        """What the current bridge was made from, or the one that a reload is about to make."""
        self.drain = Drain(lambda: self.bridges)
        self.metrics_at: str | None = None
        """Where metrics are to be read, if not at the bridge's own address: a supervisor has those of all workers."""
        self.on_reloaded: Callable[[bool], None] = lambda _: None
        """Called after each reload. False: the old configuration stays in use."""
        self._serve_with: Callable[[Bridge], None] | None = None
        self._bridges: list[Bridge] = []
        self._lost = 0
        """Records that were lost by bridges that have ended."""
        self._memory = Memory(0)
        """What all bridges may have in memory together: `limits.buffered` of the current one."""
        self.is_serving = False
        """Whether the ports are open."""
        self._reloading: asyncio.Task[None] | None = None
        self._again = False
        self._over = False
        self._terminals = Terminals()

    @classmethod
    def of_master(cls) -> Life:
        """Return the running master's object. The first call creates it."""
        life = ctx.master.addons.get(cls.name)
        if life is None:
            life = cls()
            ctx.master.addons.add(life)
        assert isinstance(life, Life)
        return life

    @property
    def bridges(self) -> list[Bridge]:
        """The current bridge, and retired ones that still have requests or unwritten records."""
        ended = [bridge for bridge in self._bridges if bridge.ended]
        if ended:
            self._lost += sum(bridge.stream.lost for bridge in ended)
            self._bridges = [bridge for bridge in self._bridges if bridge not in ended]
        return list(self._bridges)

    def follow(self, addon: object, serve_with: Callable[[Bridge], None]) -> None:
        """Call `serve_with` with each bridge that becomes the current one, for this addon instead of the one before."""
        self.addon, self._serve_with = addon, serve_with

    def begin(self, source: Source) -> None:
        """Make the first bridge. Blocks until the database is open. Raises ConfigError and DatabaseUnavailable."""
        self.source = source
        bridge = source.make()
        source.check(bridge.settings)
        self._memory.limit = bridge.settings.limits.buffered
        bridge.count_in(self._memory)
        bridge.start()
        self._use(bridge)

    def serve(self) -> None:
        """The ports are open. May be called again."""
        if not self.is_serving and self.current is not None:
            self.current.serve()
        self.is_serving = True

    def reload(self, source: Source | None = None) -> None:
        """Read the configuration again and replace the bridge by a new one, in the background.

        `source`: None means the same as before. If the new bridge cannot start, the present one stays.
        """
        self.source = source or self.source
        if self.drain.begun or self._over:
            logger.warning("aibridge: the configuration is not reloaded during a stop")
        elif self._reloading is None:
            self._reloading = asyncio.get_running_loop().create_task(self._reload())
        else:
            self._again = True

    def left(self, addon: object) -> None:
        """An addon is removed: in favour of another one in the same turn of the event loop, or for good."""
        if ctx.master.should_exit.is_set():
            self.done()  # now: keys are concealed here, and the `done` of `-w` writes the requests under way
        else:
            asyncio.get_running_loop().call_soon(self._left, addon, _script_of(addon))

    def done(self) -> None:
        """mitmproxy ends. End every bridge, and block for at most `CLOSE_TIMEOUT` seconds for each."""
        self._over = True
        for bridge in self.bridges:
            bridge.close_now(CLOSE_TIMEOUT)

    # --- signals ----------------------------------------------------------------------------------------------

    def take_signals(self) -> None:
        """Drain on SIGTERM and SIGINT; a second one ends at once. Reload on SIGHUP.

        mitmproxy's console keeps SIGINT, because it asks for confirmation.
        """
        loop = asyncio.get_running_loop()
        handlers: dict[int, Callable[[], None]] = {signal.SIGTERM: self.drain.begin, signal.SIGHUP: self._hang_up}
        if not hasattr(ctx.master, "prompt_for_exit"):
            handlers[signal.SIGINT] = self.drain.begin
        for number, handle in handlers.items():
            loop.add_signal_handler(number, handle)

    def _hang_up(self) -> None:
        if self._terminals.are_open:
            self.reload()
        else:
            self.drain.begin()

    # --- the change from one bridge to the next ---------------------------------------------------------------

    def _use(self, bridge: Bridge) -> None:
        before, self.current = self.current, bridge
        self._memory.limit = bridge.settings.limits.buffered
        bridge.lost_elsewhere = lambda: self._lost_by_others(bridge)
        self._bridges = [*self.bridges, bridge]
        if self.is_serving:
            bridge.serve()
        if self._serve_with is not None:
            self._serve_with(bridge)
        if before is not None:
            before.retire()

    def _lost_by_others(self, bridge: Bridge) -> int:
        """Return the records that other bridges of this process have lost. May be called on any thread."""
        return self._lost + sum(other.stream.lost for other in self._bridges if other is not bridge)

    async def _reload(self) -> None:
        try:
            while True:
                self._again = False
                succeeded = await self._replace()
                if not self._again:
                    self.on_reloaded(succeeded)
                    return
        finally:
            self._reloading = None

    async def _replace(self) -> bool:
        """Returns whether the bridge was replaced."""
        source = self.source
        assert source is not None
        bridge: Bridge | None = None
        try:
            bridge = await on_thread(THREAD, source.make)
            bridge.count_in(self._memory)
            source.check(bridge.settings)
            await on_thread(THREAD, bridge.open)
            if self._over or self.drain.begun or self.addon is None:
                await bridge.close(0)
                return False
            source.check(bridge.settings)  # again, since the options may have changed meanwhile
            bridge.start(self.current)
        except (ConfigError, DatabaseUnavailable) as e:
            logger.error("aibridge: the configuration is not reloaded, the old one stays in use: %s", e)
        except Exception:
            logger.exception("aibridge: the configuration is not reloaded, the old one stays in use")
        else:
            self._use(bridge)
            return True
        if bridge is not None:
            await bridge.close(0)
        return False

    def _left(self, addon: object, script: object) -> None:
        if self._over or self.addon is not addon:
            return
        self.addon = self._serve_with = None
        bridge, self.current = self.current, None
        if script is not None and script in _scripts():
            logger.error("aibridge could not be loaded again: new connections are closed until it can")
        else:
            Gate.of_master().release()
            logger.warning("aibridge is unloaded: requests are not recorded any more")
        if bridge is not None:
            bridge.retire()


def _scripts() -> Sequence[Script]:
    loader = ctx.master.addons.get("scriptloader")
    return loader.addons if loader is not None else ()


def _script_of(addon: object) -> Script | None:
    """Return the script of `-s` that has an addon. None: another program has added it."""
    return next((script for script in _scripts() if addon in getattr(script.ns, "addons", ())), None)
