"""How many connections the metrics port takes at once, seen from outside."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from aibridge_addon.config import schema
from aibridge_addon.config.values import Listen
from aibridge_addon.telemetry.prometheus.listener import Listener
from aibridge_addon.telemetry.prometheus.metrics import Metrics
from tests.support.polling import poll_until

LIMIT = 16
"""Of the port, whatever serves it."""
PATIENCE = 30.0
"""Seconds after which a connection that is neither served nor closed fails the test."""


@pytest.fixture
def port() -> Iterator[int]:
    listener = Listener(Listen("127.0.0.1", 0), Metrics(schema.Metrics()).registry)
    listener.start()
    yield listener.port
    listener.stop()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def is_served(connection: socket.socket) -> bool:
    """Whether a request is answered; False: the connection is closed."""
    try:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
    except TimeoutError as e:
        raise AssertionError("neither served nor closed") from e
    except (http.client.HTTPException, OSError):
        return False
    return response.status == 200


def test_the_connections_above_the_limit_are_closed_at_once_and_then_it_serves_again(port: int) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(connect(port)) for _ in range(LIMIT)]
        for connection in held:
            connection.sendall(b"GET /heal")
        for _ in range(3):
            with connect(port) as refused:
                assert not is_served(refused)
        held[0].sendall(b"thz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert held[0].recv(12) == b"HTTP/1.1 200"

    def serves() -> bool:
        with connect(port) as connection:
            return is_served(connection)

    poll_until(serves, PATIENCE, what="an answer after the connections have been closed")
