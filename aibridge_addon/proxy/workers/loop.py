"""A worker's event loop: asyncio's or, where it can be had, uvloop's. Its servers are ports of the supervisor."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

from aibridge_addon.proxy.connection.handed import HandedServer, listen


class _Handed(asyncio.AbstractEventLoop):
    """Mixed into an event loop."""

    control: socket.socket

    async def create_server(self, _factory: object, host: str = "", port: int = 0, **_more: object) -> HandedServer:  # type: ignore[override]
        return listen(self.control, host, port, self)


def _uvloop() -> type[asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop with what mitmproxy and Python 3.13 need. None: it is not installed."""
    try:
        import uvloop
    except ImportError:
        return None

    class Loop(uvloop.Loop):
        def create_task(self, coro: Any, *, name: Any = None, context: Any = None, **_: Any) -> Any:
            # uvloop hands `eager_start` to the task factory. Those of Python before 3.14 do not take it.
            factory = self.get_task_factory()
            if factory is None:
                return asyncio.Task(coro, loop=self, name=name, context=context)
            return factory(self, coro, name=name, context=context)  # type: ignore[call-arg]

        async def create_connection(  # type: ignore[override]
            self, factory: Any, host: Any = None, port: Any = None, **more: Any
        ) -> Any:
            # uvloop looks names up in threads of its own, where `Names` cannot answer.
            if host is None:
                return await super().create_connection(factory, host, port, **more)
            if more.get("ssl"):
                more.setdefault("server_hostname", host)
            error: OSError | None = None
            for *_, address in await self.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                try:
                    return await super().create_connection(factory, address[0], address[1], **more)
                except OSError as e:
                    error = e
            raise error or OSError(f"{host} has no address")

    return Loop


class Policy(asyncio.DefaultEventLoopPolicy):
    """Makes the main thread's event loop, which mitmproxy asks asyncio for. Other threads get asyncio's own."""

    def __init__(self, control: socket.socket, *, uvloop: bool = True) -> None:
        super().__init__()
        base = (_uvloop() if uvloop else None) or asyncio.SelectorEventLoop
        self._main: Callable[[], asyncio.AbstractEventLoop] = type("WorkerLoop", (_Handed, base), {"control": control})

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        if threading.current_thread() is threading.main_thread():
            return self._main()
        return super().new_event_loop()
