"""What the supervisor and a worker say to each other.

The control is one pair of connected sockets for each worker. It carries lines of JSON:

    worker ─▶ supervisor   {"listen": [host, port]}
    supervisor ─▶ worker   {"sockets": n} with n + 1 descriptors: of a new hand-over, and of the port's own sockets, of
                           which only the addresses are read; or {"errno": n, "error": text}
    worker ─▶ supervisor   {"ready": true, "metrics": "127.0.0.1:1234"}, and again after each reload
                           {"reloaded": false}: the new configuration is wrong, the old one stays

The worker asks before it is ready, and waits for the answer. At the control's end, the other side has ended.

A hand-over is one pair for each port that a worker serves:

    supervisor ─▶ worker   a byte with the descriptor of a connection
    worker ─▶ supervisor   TAKEN for each that it has received, ENDED for each that is over

The worker closes its end when it accepts no more.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

HANDED = b"c"
TAKEN = ord("+")
ENDED = ord("-")
MAX_LINE = 64 * 1024
"""Bytes of a line of the control."""
MAX_SOCKETS = 64
"""Sockets of one port: `localhost` has two."""


def send(control: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send a line. Raises OSError: the other side has ended."""
    line = json.dumps(message).encode() + b"\n"
    if descriptors:
        sent = socket.send_fds(control, [line], descriptors)
        line = line[sent:]
    control.sendall(line)


class Lines:
    """Splits what arrives into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Sequence[dict[str, Any]]:
        """Return the messages that are complete now. Raises ValueError: it is none of ours."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise ValueError("a message of the control is too long")
        return [json.loads(line) for line in lines]
