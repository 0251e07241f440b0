"""Clients: httpx ones that are set up for a proxy, and a raw HTTP/1.1 one that shows every byte and its time.

with RawHttp1.through_proxy(proxy, "localhost", upstream.port) as client:
    client.request("POST", "/v1/messages", body=b"{}")
    assert client.read_head().status == 200
    assert client.read_body_chunk() == b"data: 1\\n\\n"      # while the server holds back the next one
    gate.open()
    assert client.read_body() == b"data: 2\\n\\n"
"""

import socket
import ssl
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import httpx

from tests.support.peer import READ_SIZE
from tests.support.script import DEFAULT_TIMEOUT, AnyHeader, Header

HTTP1_ALPN = ("http/1.1",)


class Proxy(Protocol):
    """What a client must know of a running mitmdump."""

    @property
    def port(self) -> int: ...

    @property
    def proxy_url(self) -> str: ...

    @property
    def ca_file(self) -> Path: ...


def trust(proxy: Proxy) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(proxy.ca_file))


def proxy_client(proxy: Proxy, *, http2: bool = False, timeout: float = DEFAULT_TIMEOUT) -> httpx.Client:
    """Make a client that sends everything through the proxy, and trusts it."""
    return httpx.Client(proxy=proxy.proxy_url, verify=trust(proxy), http2=http2, timeout=timeout, trust_env=False)


def async_proxy_client(proxy: Proxy, *, http2: bool = False, timeout: float = DEFAULT_TIMEOUT) -> httpx.AsyncClient:
    return httpx.AsyncClient(proxy=proxy.proxy_url, verify=trust(proxy), http2=http2, timeout=timeout, trust_env=False)


def gateway_client(proxy: Proxy, prefix: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> httpx.Client:
    """Make a client that takes mitmdump itself for the provider, at a path prefix."""
    return httpx.Client(base_url=proxy.proxy_url + prefix, timeout=timeout, trust_env=False)


@dataclass(frozen=True)
class Head:
    raw: bytes  # with the blank line
    status: int
    headers: tuple[Header, ...]

    def header(self, name: str) -> str | None:
        wanted = name.lower().encode()
        found = [value.decode("latin-1") for key, value in self.headers if key.lower() == wanted]
        return ", ".join(found) if found else None


def connect_through(
    proxy: Proxy,
    host: str,
    port: int,
    *,
    alpn: Iterable[str] = HTTP1_ALPN,
    timeout: float = DEFAULT_TIMEOUT,
    server_name: str | None = None,
) -> ssl.SSLSocket:
    """Open a CONNECT tunnel and a TLS connection in it, trusting the proxy's authority only.

    `server_name` is what TLS's greeting names, if that is not the host.
    """
    tunnel = RawHttp1.connect("127.0.0.1", proxy.port, timeout=timeout)
    tunnel.send(f"CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode())
    head = tunnel.read_head()
    if head.status != 200:
        tunnel.close()
        raise ConnectionRefusedError(f"CONNECT was answered with {head.raw!r}")
    context = trust(proxy)
    context.set_alpn_protocols(list(alpn))
    return context.wrap_socket(tunnel.socket, server_hostname=server_name or host)


class RawHttp1:
    """Send exact bytes, and read an answer piece by piece as it arrives; every read has a time limit."""

    def __init__(self, connection: socket.socket, authority: str) -> None:
        self.socket = connection
        self.authority = authority
        self._unread = b""
        self._method = "GET"
        self._chunked = False
        self._remaining: int | None = 0  # body bytes still to come; None: until the connection's end
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def connect(cls, host: str, port: int, *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        return cls(socket.create_connection((host, port), timeout), f"{host}:{port}")

    @classmethod
    def through_proxy(cls, proxy: Proxy, host: str, port: int, *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        return cls(connect_through(proxy, host, port, timeout=timeout), f"{host}:{port}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | Iterable[AnyHeader] = (),
        body: bytes | None = None,
    ) -> None:
        """Send a request with these headers in this order, after `host` and before `content-length`."""
        self._method = method
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        lines = [f"{method} {target} HTTP/1.1".encode("latin-1"), b"host: " + self.authority.encode()]
        lines += [_bytes(name) + b": " + _bytes(value) for name, value in pairs]
        if body is not None:
            lines.append(b"content-length: %d" % len(body))
        self.send(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""))

    def read_head(self) -> Head:
        """Read the next head, which may be that of an interim answer (1xx)."""
        raw = self._until(b"\r\n\r\n")
        status_line, *lines = raw[:-4].split(b"\r\n")
        status = int(status_line.split()[1])
        fields = [line.partition(b":") for line in lines]
        head = Head(raw, status, tuple((name, value.strip()) for name, _, value in fields))
        length = head.header("content-length")
        self._chunked = False
        if self._method == "HEAD" or status < 200 or status in (204, 304):
            self._remaining = 0
        elif (head.header("transfer-encoding") or "").lower().endswith("chunked"):
            self._chunked, self._remaining = True, None
        else:
            self._remaining = None if length is None else int(length)
        return head

    def read_body_chunk(self) -> bytes:
        """Return the next bytes of the body: one whole chunk if it is chunked; b"" at its proper end.

        A connection that ends before its body does is an EOFError.
        """
        if self._chunked:
            return self._chunk()
        if self._remaining == 0:
            return b""
        if not self._unread and not self._receive():
            if self._remaining is None:
                return b""
            raise EOFError(f"the connection ended {self._remaining} bytes before the body did")
        if self._remaining is None:
            return self._take(len(self._unread))
        data = self._take(self._remaining)
        self._remaining -= len(data)
        return data

    def read_body(self) -> bytes:
        return b"".join(iter(self.read_body_chunk, b""))

    def read_body_until(self, end: bytes) -> bytes:
        """Read whole pieces until the body so far ends with these bytes: however it was cut on its way."""
        body = b""
        while not body.endswith(end):
            piece = self.read_body_chunk()
            if not piece:
                raise EOFError(f"the body ended without {end!r}: {body!r}")
            body += piece
        return body

    def read_until(self, end: bytes) -> bytes:
        """Read on until these bytes, which are returned, too: also what came together with a head.

        A connection that ends before is an EOFError.
        """
        return self._until(end)

    def read_to_end(self) -> bytes:
        """Return all bytes until the connection ends, as they are."""
        while self._receive():
            pass
        return self._take(len(self._unread))

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def abort(self) -> None:
        """Reset the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _chunk(self) -> bytes:
        size = int(self._until(b"\r\n").partition(b";")[0], 16)
        if size == 0:
            while self._until(b"\r\n") != b"\r\n":
                pass  # trailers
            self._chunked, self._remaining = False, 0
            return b""
        while len(self._unread) < size + 2:
            self._receive_more()
        data = self._take(size)
        if self._take(2) != b"\r\n":
            raise ValueError("a chunk is longer than it says")
        return data

    def _until(self, end: bytes) -> bytes:
        while end not in self._unread:
            self._receive_more()
        return self._take(self._unread.index(end) + len(end))

    def _take(self, size: int) -> bytes:
        taken, self._unread = self._unread[:size], self._unread[size:]
        return taken

    def _receive_more(self) -> None:
        if not self._receive():
            raise EOFError(f"the connection ended after {self._unread!r}")

    def _receive(self) -> bool:
        data = self.socket.recv(READ_SIZE)
        self._unread += data
        return bool(data)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")
