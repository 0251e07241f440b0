"""A raw HTTP/2 client through a CONNECT tunnel: it shows each DATA frame, and resets streams at will."""

import ssl
from collections import defaultdict, deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.errors
import h2.events
from hyperframe.frame import GoAwayFrame

from tests.support.client import Proxy, connect_through
from tests.support.peer import READ_SIZE
from tests.support.script import DEFAULT_TIMEOUT, Header


class StreamResetError(Exception):
    def __init__(self, stream_id: int, error_code: int) -> None:
        super().__init__(f"stream {stream_id} was reset with error code {error_code}")
        self.error_code = error_code


class RawHttp2:
    def __init__(self, connection: ssl.SSLSocket, authority: str) -> None:
        if connection.selected_alpn_protocol() != "h2":
            raise ConnectionError(f"HTTP/2 was not negotiated but {connection.selected_alpn_protocol()}")
        self.socket = connection
        self.authority = authority
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = h2.connection.H2Connection(config)
        self._events: defaultdict[int, deque[h2.events.Event]] = defaultdict(deque)
        self._ended: h2.events.ConnectionTerminated | None = None
        self._h2.initiate_connection()
        self._flush()

    @classmethod
    def through_proxy(cls, proxy: Proxy, host: str, port: int, *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        return cls(connect_through(proxy, host, port, alpn=("h2",), timeout=timeout), f"{host}:{port}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def max_streams(self) -> int | None:
        """How many streams the server allows at once, once its settings have been read."""
        limit: int | None = self._h2.remote_settings.max_concurrent_streams
        return limit

    def request(
        self,
        method: str,
        path: str,
        headers: Sequence[Header] = (),
        body: bytes = b"",
        trailers: Sequence[Header] = (),
        *,
        whole: bool = True,
        reset: bool = False,
    ) -> int:
        """Send a request and return its stream's id. A request with trailers has a body.

        `whole` False: more of its body follows with `send_rest`. `reset`: its stream is reset in the same packet.
        """
        stream_id: int = self._h2.get_next_available_stream_id()
        pseudo = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", self.authority.encode()),
            (b":path", path.encode("latin-1")),
        ]
        self._h2.send_headers(stream_id, [*pseudo, *headers], end_stream=whole and not body)
        if reset:
            self.reset(stream_id)
            return stream_id
        self._flush()
        self._send(stream_id, body, whole=whole and not trailers)
        if trailers:
            self._h2.send_headers(stream_id, trailers, end_stream=True)
            self._flush()
        return stream_id

    def send_rest(self, stream_id: int, body: bytes) -> None:
        self._send(stream_id, body, whole=True)

    def _send(self, stream_id: int, body: bytes, *, whole: bool) -> None:
        while body:
            window = self._h2.local_flow_control_window(stream_id)
            size = min(window, self._h2.max_outbound_frame_size, len(body))
            if size <= 0:
                self._receive()
                continue
            self._h2.send_data(stream_id, body[:size], end_stream=whole and size == len(body))
            body = body[size:]
            self._flush()

    def read_head(self, stream_id: int) -> tuple[int, list[Header]]:
        """Return the status and the headers, without pseudo-headers."""
        event = self._next(stream_id)
        if not isinstance(event, h2.events.ResponseReceived):
            raise TypeError(f"expected a head: {event}")
        headers = [(bytes(name), bytes(value)) for name, value in event.headers]
        status = int(dict(headers)[b":status"])
        return status, [header for header in headers if not header[0].startswith(b":")]

    def read_data(self, stream_id: int) -> bytes:
        """Return the next frame's bytes; b"" at the proper end of the stream."""
        while True:
            match self._next(stream_id):
                case h2.events.DataReceived(data=data) if data:
                    return data
                case h2.events.StreamEnded():
                    return b""
                case _:
                    pass  # trailers, empty frames

    def read_body(self, stream_id: int) -> bytes:
        return b"".join(iter(lambda: self.read_data(stream_id), b""))

    def reset(self, stream_id: int, error_code: int = h2.errors.ErrorCodes.CANCEL) -> None:
        self._h2.reset_stream(stream_id, error_code)
        self._flush()

    def go_away(self) -> None:
        """Send GOAWAY without an error, as a client does that makes no further requests, and read on."""
        self.socket.sendall(GoAwayFrame(0, last_stream_id=0, error_code=0).serialize())

    def close(self) -> None:
        self.socket.close()

    def _next(self, stream_id: int) -> h2.events.Event:
        events = self._events[stream_id]
        while not events:
            if self._ended:
                raise EOFError(f"the connection was ended: {self._ended}")
            self._receive()
        event = events.popleft()
        if isinstance(event, h2.events.StreamReset):
            raise StreamResetError(stream_id, event.error_code)
        return event

    def _receive(self) -> None:
        data = self.socket.recv(READ_SIZE)
        if not data:
            raise EOFError("the connection ended")
        for event in self._h2.receive_data(data):
            match event:
                case h2.events.DataReceived():
                    self._events[event.stream_id].append(event)
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.ConnectionTerminated():
                    self._ended = event
                case (
                    h2.events.ResponseReceived()
                    | h2.events.TrailersReceived()
                    | h2.events.StreamEnded()
                    | h2.events.StreamReset()
                ):
                    self._events[event.stream_id].append(event)
                case _:
                    pass
        self._flush()

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self.socket.sendall(data)
