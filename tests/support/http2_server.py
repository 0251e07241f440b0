"""Serve scripted answers over HTTP/2: one task per stream, so that streams are answered side by side."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from tests.support.journal import Journal
from tests.support.peer import Peer
from tests.support.script import Abort, Answer, AnyAnswer, Close, GoAway, Header, Pause, Request, Step

log = logging.getLogger(__name__)


class _StreamEnded(Exception):
    """The script ended the stream, or the whole connection."""


@dataclass
class _Stream:
    headers: list[Header]
    body: bytearray = field(default_factory=bytearray)
    request: Request | None = None
    answering: asyncio.Task[None] | None = None


class Http2Session:
    def __init__(
        self,
        peer: Peer,
        journal: Journal,
        choose: Callable[[Request], AnyAnswer],
        *,
        settings: Mapping[SettingCodes | int, int],
    ) -> None:
        self._peer = peer
        self._journal = journal
        self._choose = choose
        self._settings = dict(settings)
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding=None,
                normalize_inbound_headers=False,  # it would join cookies
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._streams: dict[int, _Stream] = {}
        self._window_changed = asyncio.Event()
        self._closed_by_script = False

    async def run(self) -> None:
        self._h2.initiate_connection()
        self._h2.update_settings(self._settings)
        self._flush_soon()
        try:
            while data := await self._peer.read():
                if self._closed_by_script:
                    break  # what the client had already sent is too late
                for event in self._h2.receive_data(data):
                    self._handle(event)
                self._flush_soon()
        except h2.exceptions.ProtocolError as error:
            self._journal.failed(f"HTTP/2 protocol error: {error!r}")
            self._flush_soon()
        finally:
            await self._leave_streams()

    def _flush_soon(self) -> None:
        # Do not drain here: the reading side must go on, or two full buffers would wait for each other.
        if not self._closed_by_script:
            self._peer.write_soon(self._h2.data_to_send())

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                headers = [(bytes(name), bytes(value)) for name, value in event.headers]
                self._streams[event.stream_id] = _Stream(headers)
            case h2.events.DataReceived():
                self._streams[event.stream_id].body += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                stream = self._streams[event.stream_id]
                stream.request = self._journal.received(self._request(stream))
                stream.answering = asyncio.create_task(self._answer(event.stream_id, stream.request))
            case h2.events.StreamReset():
                stream = self._streams[event.stream_id]
                if stream.request and stream.answering and not stream.answering.done():
                    stream.answering.cancel()
                    self._journal.disconnected(stream.request, "reset")
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._window_changed.set()
                self._window_changed = asyncio.Event()
            case _:
                pass

    def _request(self, stream: _Stream) -> Request:
        pseudo = {name: value.decode("latin-1") for name, value in stream.headers if name.startswith(b":")}
        return Request(
            sequence=-1,
            connection=self._peer.number,
            http_version="2",
            method=pseudo[b":method"],
            target=pseudo.get(b":path", ""),
            authority=pseudo.get(b":authority", ""),
            headers=tuple(header for header in stream.headers if not header[0].startswith(b":")),
            body=bytes(stream.body),
            sni=self._peer.sni,
            alpn=self._peer.alpn,
            pseudo_headers=tuple(header for header in stream.headers if header[0].startswith(b":")),
        )

    async def _leave_streams(self) -> None:
        running = [s for s in self._streams.values() if s.answering is not None and not s.answering.done()]
        for stream in running:
            if stream.answering is not None:
                stream.answering.cancel()
            if stream.request and self._peer.gone.done() and not self._closed_by_script:
                self._journal.disconnected(stream.request, self._peer.gone.result())
        tasks = [stream.answering for stream in running if stream.answering is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, stream_id: int, request: Request) -> None:
        answer = self._choose(request)
        if not isinstance(answer, Answer):
            self._journal.failed("a raw answer is for HTTP/1.1 only")
            answer = Answer(500)
        try:
            await self._write_steps(stream_id, request, answer.before)
            await self._write_message(stream_id, request, answer)
        except _StreamEnded:
            pass
        except (h2.exceptions.ProtocolError, OSError) as error:
            if not self._peer.gone.done() and not self._closed_by_script:
                self._journal.failed(f"answer to request {request.sequence} not written: {error!r}")
        except Exception as error:
            log.exception("answer to %s %s", request.method, request.target)
            self._journal.failed(f"answer to request {request.sequence} not written: {error!r}")

    async def _write_message(self, stream_id: int, request: Request, answer: Answer) -> None:
        headers = [(b":status", b"%d" % answer.status)]
        headers += [(name.lower(), value) for name, value in answer.raw_headers]
        self._h2.send_headers(stream_id, headers)
        await self._flush()
        if request.method != "HEAD":
            await self._write_steps(stream_id, request, answer.steps)
        if trailers := answer.raw_trailers:
            self._h2.send_headers(stream_id, trailers, end_stream=True)
        else:
            self._h2.end_stream(stream_id)
        await self._flush()

    async def _write_steps(self, stream_id: int, request: Request, steps: Iterable[Step]) -> None:
        for step in steps:
            match step:
                case Pause(gate):
                    await gate.passed()
                case Abort(error_code):
                    self._h2.reset_stream(stream_id, error_code)
                    await self._flush()
                    raise _StreamEnded
                case GoAway(last, code):
                    # h2 itself ends a connection on which it has sent GOAWAY.
                    last = stream_id if last is None else last
                    await self._peer.write(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())
                case Close():
                    self._h2.close_connection()
                    self._flush_soon()
                    self._closed_by_script = True
                    self._peer.close()
                    raise _StreamEnded
                case bytes():
                    await self._write_data(stream_id, request, step)

    async def _write_data(self, stream_id: int, request: Request, data: bytes) -> None:
        while data:
            window = self._h2.local_flow_control_window(stream_id)
            size = min(window, self._h2.max_outbound_frame_size, len(data))
            if size <= 0:
                await self._window_changed.wait()
                continue
            self._h2.send_data(stream_id, data[:size])
            self._journal.sent(request, data[:size])
            data = data[size:]
            await self._flush()

    async def _flush(self) -> None:
        await self._peer.write(self._h2.data_to_send())
