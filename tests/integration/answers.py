"""One streamed answer of one provider, whole or held at a gate in its middle."""

from __future__ import annotations

import socket

from tests.integration.exchanges import ANTHROPIC, Client
from tests.support.client import RawHttp1
from tests.support.fixtures import case
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, Gate, Pause

PATH = "/v1/messages"
SIMPLE = case("messages/simple/streaming")
REQUEST = SIMPLE.request
EVENTS = [event + b"\n\n" for event in SIMPLE.body.split(b"\n\n") if event]
BEGUN = b"".join(EVENTS[:5])


def config(port: int, more: str = "") -> str:
    return f"{more}\nproviders: [{{name: anthropic, type: anthropic, base_url: 'https://localhost:{port}'}}]\n"


def whole() -> Answer:
    return Answer.event_stream(SIMPLE.body)


def held(gate: Gate) -> Answer:
    return Answer.event_stream(*EVENTS[:5], Pause(gate), *EVENTS[5:])


def begin(client: RawHttp1) -> None:
    """Send a request, and read its answer up to the gate."""
    client.request("POST", PATH, body=REQUEST)
    assert client.read_head().status == 200
    assert client.read_body_until(EVENTS[4]) == BEGUN


def ask(proxy: RunningProxy, n: int = 1) -> None:
    """Have requests answered, whole and unchanged."""
    with Client(proxy, ANTHROPIC) as client:
        for _ in range(n):
            assert client.post(PATH, REQUEST).body == SIMPLE.body


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False
