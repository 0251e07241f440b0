"""Clients and providers that do what no specification allows or no peer expects, as a random number decides."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from contextlib import suppress

from hyperframe.frame import HeadersFrame, PingFrame, RstStreamFrame

from tests.support import fixtures
from tests.support.client import RawHttp1, connect_through
from tests.support.client_h2 import RawHttp2, StreamResetError
from tests.support.foreign_values import ODD, encoded, places, replaced
from tests.support.running import RunningProxy
from tests.support.upstream import Abort, Answer, AnyAnswer, RawAnswer, Request

TIMEOUT = 5.0
"""Seconds. An odd client waits no longer for an answer, which may never come."""
STREAM = fixtures.case("messages/simple/streaming")
BODY = fixtures.case("messages/simple/blocking")
ERRORS = (OSError, EOFError, ValueError, IndexError, StreamResetError)
"""What an odd client may meet: its connection is closed, or it is answered with nothing that it can read."""


class OddProvider:
    """Answers, mostly wrongly. Used on the thread of its server."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def answer(self, request: Request) -> AnyAnswer:
        choose = self._random
        stream, cut = STREAM.body, choose.randrange(len(STREAM.body))
        answers: list[Callable[[], AnyAnswer]] = [
            lambda: Answer.event_stream(stream),
            lambda: Answer.event_stream(stream[:cut], Abort()),
            lambda: Answer.event_stream(stream[:cut]),
            lambda: Answer.event_stream(stream[:cut], choose.randbytes(50), stream[cut:]),
            lambda: Answer.event_stream(self._odd_events()),
            lambda: Answer.event_stream(stream[cut:], stream),
            lambda: Answer(200, [("content-type", "application/json")], body=self._odd(BODY.body)),
            lambda: Answer(200, [("content-encoding", choose.choice(["gzip", "br", "x"]))], body=stream),
            lambda: Answer(choose.choice([204, 302, 400, 401, 429, 500, 529, 599]), body=choose.randbytes(30)),
            lambda: Answer(429, [("retry-after", choose.choice(["9" * 99, "-1", "nan", "\x7f"]))], body=b"{"),
            lambda: Answer(200, [("x-odd", "a" * choose.choice([9, 9_999]))]),
            lambda: RawAnswer([choose.randbytes(choose.randrange(200))]),
            lambda: RawAnswer([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ncontent-length: 8\r\n\r\n123456789"]),
            lambda: RawAnswer([b"HTTP/1.1 103 Early\r\n\r\n" * choose.choice([3, 300])]),
            lambda: RawAnswer([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello"]),
            lambda: RawAnswer([b"HTTP/1.1 200 OK\r\nx: " + b"a" * choose.choice([100, 400_000])]),
        ]
        return choose.choice(answers)()

    def _odd(self, body: bytes) -> bytes:
        value = json.loads(body)
        return encoded(replaced(value, self._random.choice(list(places(value))), self._random.choice(ODD)))

    def _odd_events(self) -> bytes:
        events = STREAM.body.split(b"\n\n")
        number = self._random.randrange(len(events) - 1)
        head, _, data = events[number].partition(b"data: ")
        with suppress(ValueError):
            events[number] = head + b"data: " + self._odd(data)
        return b"\n\n".join(events)


class OddClient:
    """Does one odd thing after the other to a proxy."""

    def __init__(self, proxy: RunningProxy, seed: int, gateway: str, host: str) -> None:
        """`gateway`: the path of the odd provider's Messages route there, and `host` its name for proxied requests."""
        self._proxy = proxy
        self._random = random.Random(seed)
        self._gateway = gateway
        self._host = host
        self.done = 0
        """Things that were done."""

    def act(self) -> None:
        things: list[Callable[[], None]] = [
            *(self._ask, self._ask, self._ask_oddly, self._ask_oddly, self._hang_up, self._send_anything),
            *(self._send_half, self._open_tunnel, self._frames, self._ask_over_http2, self._upload_and_leave),
            *(self._pipeline, self._trailers, self._upgrade),
        ]
        with suppress(*ERRORS):
            self._random.choice(things)()
        self.done += 1

    def _connect(self) -> RawHttp1:
        return RawHttp1.connect("127.0.0.1", self._proxy.port, timeout=TIMEOUT)

    def _ask(self) -> None:
        with self._connect() as client:
            for _ in range(self._random.randrange(1, 4)):
                client.request("POST", self._gateway, [("content-type", "application/json")], STREAM.request)
                client.read_head()
                client.read_body()

    def _ask_oddly(self) -> None:
        value = json.loads(STREAM.request)
        path = self._random.choice(list(places(value)))
        with self._connect() as client:
            client.request("POST", self._gateway, body=encoded(replaced(value, path, self._random.choice(ODD))))
            client.read_to_end()

    def _hang_up(self) -> None:
        client = self._connect()
        client.request("POST", self._gateway, body=STREAM.request)
        if self._random.random() < 0.5:
            client.read_head()
        client.abort()

    def _send_anything(self) -> None:
        with self._connect() as client:
            client.send(self._random.randbytes(self._random.randrange(1, 2_000)))
            client.half_close()
            client.read_to_end()

    def _send_half(self) -> None:
        head = f"POST {self._gateway} HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{{".encode()
        with self._connect() as client:
            client.send(head[: self._random.randrange(1, len(head))])

    def _open_tunnel(self) -> None:
        with self._connect() as client:
            client.send(f"CONNECT {self._host}:443 HTTP/1.1\r\nhost: {self._host}\r\n\r\n".encode())
            client.read_head()
            client.send(b"\x16\x03\x01" + self._random.randbytes(100))

    def _frames(self) -> None:
        block = b"\x83\x84\x87\x41\x01x"
        frames = [
            HeadersFrame(1, block, flags=["END_HEADERS"]).serialize(),
            RstStreamFrame(1, error_code=8).serialize(),
            PingFrame(0, b"12345678").serialize() * self._random.choice([1, 3_000]),
            self._random.randbytes(40),
        ]
        self._random.shuffle(frames)
        with connect_through(self._proxy, self._host, 443, alpn=("h2",), timeout=TIMEOUT) as tunnel:
            client = RawHttp2(tunnel, self._host)
            client.socket.sendall(b"".join(frames[: self._random.randrange(1, 5)]))
            while client.socket.recv(65_536):
                pass

    def _ask_over_http2(self) -> None:
        with RawHttp2.through_proxy(self._proxy, self._host, 443, timeout=TIMEOUT) as client:
            streams = [client.request("POST", "/v1/messages", body=STREAM.request) for _ in range(3)]
            client.reset(streams.pop(self._random.randrange(3)))
            for stream in streams:
                with suppress(StreamResetError):
                    client.read_head(stream)
                    client.read_body(stream)

    def _upload_and_leave(self) -> None:
        with self._connect() as client:
            client.send(f"POST {self._gateway} HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n".encode())
            client.send(b"[" * self._random.randrange(100_000))

    def _pipeline(self) -> None:
        request = f"POST {self._gateway} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(STREAM.request)}\r\n\r\n".encode()
        with self._connect() as client:
            client.send((request + STREAM.request) * 3)
            client.half_close()
            client.read_to_end()

    def _trailers(self) -> None:
        with self._connect() as client:
            client.send(f"POST {self._gateway} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
            client.send(b"%x\r\n%s\r\n0\r\nx-trailer: 1\r\n\r\n" % (len(STREAM.request), STREAM.request))
            client.read_head()
            client.read_body()

    def _upgrade(self) -> None:
        headers = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]
        with self._connect() as client:
            client.request("GET", self._gateway, [*headers, ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==")])
            client.read_head()
            client.send(self._random.randbytes(200))


def run(client: OddClient, enough: threading.Event) -> None:
    while not enough.is_set():
        client.act()
