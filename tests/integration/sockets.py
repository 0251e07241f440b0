"""WebSockets of the Responses API: a provider that answers by a script, and connections as Codex makes them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.integration.exchanges import OPENAI
from tests.support import fixtures
from tests.support.client import trust
from tests.support.running import RunningProxy

TIMEOUT = 20.0

KEY = "sk-test-0123456789abcdef"

CODEX = fixtures.case("responses/codex_main/streaming")

SIMPLE = fixtures.case("responses/simple/streaming")


Message = str | bytes | list[str]
Script = Callable[[ServerConnection], None]


class Provider:
    """A server that answers each message by the script, and keeps what it was sent, fragment by fragment."""

    def __init__(self) -> None:
        self.answers: list[list[Message]] = []
        self.received: list[list[str | bytes]] = []
        self.upgrades: list[Headers] = []
        self.deflated: list[bool] = []
        self.port = 0

    def answer(self, *messages: Message) -> None:
        self.answers.append(list(messages))

    def serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.upgrades.append(connection.request.headers)
        self.deflated.append(any(isinstance(e, PerMessageDeflate) for e in connection.protocol.extensions))
        try:
            while True:
                self.received.append(list(connection.recv_streaming()))
                for message in self.answers.pop(0) if self.answers else []:
                    connection.send(message)
        except ConnectionClosed:
            pass


def quiet() -> logging.Logger:
    """A logger whose lines are not taken for the proxy's: the library logs tracebacks of its own."""
    logger = logging.getLogger("tests.websockets")
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    return logger


@contextmanager
def served(script: Script) -> Iterator[int]:
    with serve(script, "127.0.0.1", 0, max_size=None, logger=quiet()) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


def config(port: int, *more: str) -> str:
    return "\n".join([f"providers: [{{name: openai, type: openai, base_url: 'http://localhost:{port}/v1'}}]", *more])


@contextmanager
def through(
    process: RunningProxy, way: str = "gateway", path: str = "/responses", **options: Any
) -> Iterator[ClientConnection]:
    """A connection as Codex makes it."""
    headers = {"authorization": f"Bearer {KEY}"} | {
        name.decode().lower(): value.decode() for name, value in CODEX.request_headers
    }
    agent = headers.pop("user-agent", None)
    options |= {"additional_headers": headers, "user_agent_header": agent, "open_timeout": TIMEOUT, "max_size": None}
    options["logger"] = quiet()
    if way == "gateway":
        connection = connect(f"ws://127.0.0.1:{process.port}/openai/v1{path}", proxy=None, **options)
    elif way == "proxy":
        connection = connect(f"ws://{OPENAI}/v1{path}", proxy=process.proxy_url, **options)
    else:
        trusted = trust(process)
        connection = connect(f"wss://{OPENAI}/v1{path}", proxy=process.proxy_url, ssl=trusted, **options)
    with connection as client:
        yield client


def text(*messages: bytes) -> list[str]:
    return [message.decode() for message in messages]


def read(client: ClientConnection, n: int) -> list[list[str | bytes]]:
    """The next messages, each as its fragments."""
    return [list(client.recv_streaming()) for _ in range(n)]
