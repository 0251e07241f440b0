"""Each connection goes to the worker that has the fewest, and to another one where that worker ends."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from aibridge_addon.proxy.connection.handed import HandedPort
from aibridge_addon.proxy.workers.ports import UNTAKEN, Port
from tests.support.upstream import unused_port

LOOPBACK = "127.0.0.1"
GREETING = b"hello"


@contextmanager
def opened() -> Iterator[tuple[Port, int]]:
    number = unused_port()
    port = Port(LOOPBACK, number)
    try:
        yield port, number
    finally:
        port.close()


def worker(port: Port, number: int) -> HandedPort:
    return HandedPort(port.join(number))


def connect(number: int) -> socket.socket:
    return socket.create_connection((LOOPBACK, number))


async def taken(handed: HandedPort, n: int) -> list[socket.socket]:
    """Take so many connections, as soon as they are there."""
    loop, found = asyncio.get_running_loop(), list[socket.socket]()
    enough = asyncio.Event()

    def take() -> None:
        while len(found) < n:
            try:
                found.append(handed.accept()[0])
            except BlockingIOError:
                return
        enough.set()

    loop.add_reader(handed, take)
    await enough.wait()
    loop.remove_reader(handed)
    return found


async def until_connections_are(port: Port, **wanted: int) -> None:
    while {f"w{number}": n for number, n in port.connections.items()} != wanted:  # noqa: ASYNC110 (it has no event)
        await asyncio.sleep(0)


async def test_connections_that_last_are_spread_evenly() -> None:
    with opened() as (port, number), ExitStack() as clients:
        workers = [worker(port, each) for each in (1, 2, 3)]
        for _ in range(9):
            clients.enter_context(connect(number))
        await until_connections_are(port, w1=3, w2=3, w3=3)
        for each in workers:
            for connection in await taken(each, 3):
                clients.enter_context(connection)


async def test_a_worker_whose_connections_have_ended_gets_the_next_ones() -> None:
    with opened() as (port, number), ExitStack() as clients:
        first, second = worker(port, 1), worker(port, 2)
        for _ in range(4):
            clients.enter_context(connect(number))
        for connection in await taken(first, 2):
            connection.close()
            first.ended()
        await until_connections_are(port, w1=0, w2=2)
        for _ in range(2):
            clients.enter_context(connect(number))
        await until_connections_are(port, w1=2, w2=2)
        second.close()


async def test_a_worker_that_takes_none_gets_a_bounded_number_and_the_others_the_rest() -> None:
    with opened() as (port, number), ExitStack() as clients:
        stalls, works = worker(port, 1), worker(port, 2)
        for _ in range(2 * UNTAKEN + 10):
            clients.enter_context(connect(number))
        for connection in await taken(works, UNTAKEN + 10):
            clients.enter_context(connection)
        assert port.connections == {1: UNTAKEN, 2: UNTAKEN + 10}
        stalls.close()


async def test_what_a_worker_has_not_taken_when_it_ends_goes_to_another() -> None:
    with opened() as (port, number), connect(number) as client:
        client.sendall(GREETING)
        first = worker(port, 1)
        await until_connections_are(port, w1=1)
        first.close()
        await until_connections_are(port)
        [connection] = await taken(worker(port, 2), 1)
        with connection:
            assert connection.recv(len(GREETING)) == GREETING


async def test_connections_wait_while_there_is_no_worker() -> None:
    with opened() as (port, number), connect(number) as client:
        client.sendall(GREETING)
        [connection] = await taken(worker(port, 1), 1)
        with connection:
            assert connection.recv(len(GREETING)) == GREETING


async def test_a_client_that_has_gone_is_no_connection() -> None:
    with opened() as (port, number):
        handed = worker(port, 1)
        client = connect(number)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        client.close()
        await until_connections_are(port, w1=1)
        # The system may not have noticed yet: then it is one that ends at once.
        with suppress(ConnectionAbortedError):
            handed.accept()[0].close()
            handed.ended()
        await until_connections_are(port, w1=0)


async def test_out_of_descriptors_it_pauses_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aibridge_addon.proxy.workers.ports.PAUSE", 0.0)
    refusals = [OSError(errno.EMFILE, "Too many open files")] * 3

    class Short(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if refusals:
                raise refusals.pop()
            return super().accept()

    with opened() as (port, number), connect(number):
        port.sockets = [Short(fileno=each.detach()) for each in port.sockets]
        handed = worker(port, 1)
        [connection] = await taken(handed, 1)
        connection.close()
        assert refusals == []


async def test_after_the_end_no_connection_is_accepted() -> None:
    with opened() as (port, number):
        handed = worker(port, 1)
        port.close()
        with pytest.raises(ConnectionRefusedError):
            connect(number)
        with pytest.raises(BlockingIOError):
            handed.accept()
