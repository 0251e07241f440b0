"""What happened at a scripted upstream: written by the server's thread, read and waited for by the test's."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from tests.support.script import DEFAULT_TIMEOUT, Disconnect, Request


class Journal:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: list[Request] = []
        self._bodies: list[bytearray] = []
        self._disconnects: list[Disconnect] = []
        self._failures: list[str] = []

    def received(self, request: Request) -> Request:
        """Record a request and give it its sequence number."""
        with self._changed:
            numbered = replace(request, sequence=len(self._requests))
            self._requests.append(numbered)
            self._bodies.append(bytearray())
            self._changed.notify_all()
        return numbered

    def sent(self, request: Request, data: bytes) -> None:
        with self._changed:
            self._bodies[request.sequence] += data
            self._changed.notify_all()

    def disconnected(self, request: Request, kind: Literal["eof", "reset"]) -> None:
        with self._changed:
            sent = len(self._bodies[request.sequence])
            self._disconnects.append(Disconnect(request, kind, sent))
            self._changed.notify_all()

    def failed(self, message: str) -> None:
        with self._changed:
            self._failures.append(message)
            self._changed.notify_all()

    @property
    def requests(self) -> list[Request]:
        return self._snapshot(self._requests)

    @property
    def bodies_sent(self) -> list[bytes]:
        with self._changed:
            return [bytes(body) for body in self._bodies]

    @property
    def disconnects(self) -> list[Disconnect]:
        return self._snapshot(self._disconnects)

    @property
    def failures(self) -> list[str]:
        return self._snapshot(self._failures)

    def forget_failures(self) -> list[str]:
        with self._changed:
            failures = list(self._failures)
            self._failures.clear()
        return failures

    def wait_for_requests(self, n: int, timeout: float = DEFAULT_TIMEOUT) -> list[Request]:
        self._wait(lambda: len(self._requests) >= n, timeout, f"{n} requests")
        return self.requests

    def wait_for_disconnects(self, n: int = 1, timeout: float = DEFAULT_TIMEOUT) -> list[Disconnect]:
        self._wait(lambda: len(self._disconnects) >= n, timeout, f"{n} disconnects")
        return self.disconnects

    def wait_for_failures(self, n: int = 1, timeout: float = DEFAULT_TIMEOUT) -> list[str]:
        self._wait(lambda: len(self._failures) >= n, timeout, f"{n} failures")
        return self.failures

    def _snapshot[T](self, items: Sequence[T]) -> list[T]:
        with self._changed:
            return list(items)

    def _wait(self, reached: Callable[[], bool], timeout: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(reached, timeout):
                seen = [f"{request.method} {request.target}" for request in self._requests]
                raise TimeoutError(
                    f"no {what} within {timeout} s; requests: {seen}, "
                    f"disconnects: {len(self._disconnects)}, failures: {self._failures}"
                )
