"""A proxy for one connection."""

from __future__ import annotations

import socket
import ssl
import threading


class Tunnel:
    """A proxy that accepts a CONNECT and is itself the server at its other end."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                self._context.wrap_socket(connection, server_side=True).close()
            except OSError:
                pass  # the client does not trust the certificate

    def __enter__(self) -> int:
        self._thread.start()
        port: int = self._server.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._server.close()
