"""One client connection of a scripted upstream: bytes in and out, and the moment the client leaves."""

import asyncio
import contextlib
import socket
import struct
from typing import Literal

READ_SIZE = 65_536

Departure = Literal["eof", "reset"]


class Peer:
    """Pump bytes in at all times, so that a departure is noticed while an answer is being written.

    The end of the client's bytes counts as departure: no client that we serve half-closes and waits on.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        number: int,
        sni: str | None,
        alpn: str | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.number = number
        self.sni = sni
        self.alpn = alpn
        self.gone: asyncio.Future[Departure] = asyncio.get_running_loop().create_future()
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._pump_task = asyncio.create_task(self._pump())
        self._set(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # drain() returns when nothing is held back. Not zero: with TLS, asyncio pauses at `size >= high`.
        writer.transport.set_write_buffer_limits(high=1, low=0)

    def _set(self, level: int, option: int, value: int | bytes) -> None:
        """Set an option of the socket, if the connection is not over yet: over TLS there is none then."""
        found: socket.socket | None = self._writer.get_extra_info("socket")
        if found is not None:
            with contextlib.suppress(OSError):
                found.setsockopt(level, option, value)

    async def read(self) -> bytes:
        """Return the next bytes; b"" once the client has left, and only then."""
        if self.gone.done() and self._inbox.empty():
            return b""
        return await self._inbox.get()

    def write_soon(self, data: bytes) -> None:
        self._writer.write(data)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        """Reset the connection: with a linger time of zero, closing sends RST instead of FIN."""
        self._set(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def closed(self) -> None:
        self._writer.close()
        self._pump_task.cancel()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._pump_task
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _pump(self) -> None:
        departure: Departure = "eof"
        try:
            while data := await self._reader.read(READ_SIZE):
                self._inbox.put_nowait(data)
        except OSError:
            departure = "reset"
        self.gone.set_result(departure)
        self._inbox.put_nowait(b"")
