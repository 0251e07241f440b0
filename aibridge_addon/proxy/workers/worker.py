"""One worker of `aibridge serve`: `mitmdump` with our addon, on ports of the supervisor.

It gets three arguments before those of mitmdump: the descriptor of the control, `uvloop` or `asyncio`, and the address
of the supervisor's endpoint or nothing. When the supervisor has ended, it drains and ends.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader
from mitmproxy.tools import dump
from mitmproxy.tools.main import mitmdump

from aibridge_addon.proxy.connection import channel
from aibridge_addon.proxy.life import Life
from aibridge_addon.proxy.workers.loop import Policy


class Announcement:
    """Says when the worker serves requests, and what became of each reload. The last addon: all others run before."""

    def __init__(self, control: socket.socket, metrics_at: str | None) -> None:
        self._control = control
        self._metrics_at = metrics_at

    def load(self, _: Loader) -> None:
        Life.of_master().metrics_at = self._metrics_at

    def running(self) -> None:
        life = ctx.master.addons.get(Life.name)
        if not isinstance(life, Life) or life.current is None:
            return  # the error is in the log, and mitmproxy ends
        life.on_reloaded = self._reloaded
        asyncio.get_running_loop().add_reader(self._control, self._supervisor_ended, life)
        self._say({"ready": True})

    def _reloaded(self, succeeded: bool) -> None:
        self._say({"reloaded": succeeded})

    def _say(self, message: dict[str, object]) -> None:
        current = Life.of_master().current
        with suppress(OSError):
            channel.send(self._control, message | {"metrics": current.address if current is not None else None})

    def _supervisor_ended(self, life: Life) -> None:
        # It says nothing more after the ports are open, so this is the control's end.
        asyncio.get_running_loop().remove_reader(self._control)
        life.drain.begin()


def main(arguments: Sequence[str]) -> None:
    descriptor, kind, metrics_at, *options = arguments
    control = socket.socket(fileno=int(descriptor))
    asyncio.set_event_loop_policy(Policy(control, uvloop=kind == "uvloop"))

    class Master(dump.DumpMaster):
        def __init__(self, *arguments: object, **more: object) -> None:
            super().__init__(*arguments, **more)  # type: ignore[arg-type]
            self.addons.add(Announcement(control, metrics_at or None))

    dump.DumpMaster = Master  # type: ignore[misc]  # the only way for an addon behind those of `-s`
    mitmdump(options)


if __name__ == "__main__":
    main(sys.argv[1:])
