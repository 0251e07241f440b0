"""How many connections the metrics port takes at once, seen from outside."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

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


def test_a_probe_is_answered_while_idle_connections_hang(port: int) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(connect(port)) for _ in range(LIMIT)]
        for connection in held[:-1]:
            connection.sendall(b"GET /heal")
        for _ in range(3):
            with connect(port) as probe:
                assert is_served(probe)
        held[0].settimeout(PATIENCE)
        with suppress(ConnectionError):
            assert held[0].recv(1) == b""  # the oldest was closed
        held[-2].sendall(b"thz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert held[-2].recv(12) == b"HTTP/1.1 200"


def test_a_connection_that_is_answered_is_not_closed_for_another() -> None:
    """A scrape of many connections waits for one thread."""
    gate = threading.Event()

    class Slow(Collector):
        def collect(self) -> Iterator[Metric]:
            gate.wait(PATIENCE)
            yield from ()

    listener = Listener(Listen("127.0.0.1", 0), Slow())
    listener.start()
    try:
        with ExitStack() as stack:
            asking: list[socket.socket] = []

            def is_full() -> bool:
                asking.append(stack.enter_context(connect(listener.port)))
                with suppress(ConnectionError):
                    asking[-1].sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                with connect(listener.port) as further:
                    return not is_served(further)

            poll_until(is_full, PATIENCE, what="a refused connection")
            gate.set()
            answers = 0
            for connection in asking:
                with suppress(ConnectionError):
                    answers += connection.recv(12) == b"HTTP/1.1 200"
            assert answers == LIMIT
    finally:
        gate.set()
        listener.stop()
