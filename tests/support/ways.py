"""Play answers to the bridge's layers, on each way that their packets can take, and note what they lead to."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from mitmproxy import ctx
from mitmproxy.connection import Server
from mitmproxy.proxy import commands

from aibridge_addon import records
from aibridge_addon.bridge import Bridge
from aibridge_addon.config.schema import Settings
from aibridge_addon.proxy.stream.arrivals import Arrivals
from aibridge_addon.proxy.stream.next_turn import END_TIMEOUT
from aibridge_addon.proxy.stream.short_way import PlainServer
from tests.support.offered_tools import offer
from tests.support.scene import CHUNKED_END, EVENT_STREAM, PATHS, PROVIDERS, Scene, chunk, request

UNTIL_THE_END = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
OF_LENGTH = UNTIL_THE_END[:-2] + b"Content-Length: %d\r\n\r\n"
TOOL = "look"
"""The injected tool that is offered."""

# --- what is played -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """An answer as the upstream sends it."""

    head: bytes
    packets: list[bytes]
    closes: bool
    """Whether the upstream then closes its connection."""


@dataclass(frozen=True)
class Script:
    """A request and the upstream's answers: one for each turn."""

    dialect: str
    request: bytes
    answers: list[Answer]
    offers: bool
    """Whether injected tools are offered."""
    version: bytes = b"HTTP/1.1"
    """The client's."""
    waits: bool = False
    """Whether hooks take until the end of an answer."""


SIZES = (b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"%x;a=b\r\n", b"%x \r\n", b"000000000%x\r\n")
ENDS = (
    CHUNKED_END,
    chunk(b": more\n\n") + CHUNKED_END,
    b"0\r\nx: y\r\n\r\n",
    b"00\r\n\r\n",
    b"",
    b"5\r\nabc",
    b"zz\r\n",
    b"3\r\nabcd\r\n",
)
Draw = Callable[[Any], Any]


def cut(draw: Draw, whole: bytes, most: int) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=most)))
    return [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)]) if end > start]


def pieces_of(draw: Draw, body: bytes) -> list[bytes]:
    """An event stream's events, or any other pieces of it."""
    if draw(st.booleans()):
        return [event + b"\n\n" for event in body.split(b"\n\n") if event]
    return cut(draw, body, 8)


def chunked(draw: Draw, body: bytes) -> Answer:
    framed = [draw(st.sampled_from(SIZES)) % len(piece) + piece + b"\r\n" for piece in pieces_of(draw, body)]
    whole = [*framed, draw(st.sampled_from(ENDS))]
    packets = [packet for packet in whole if packet] if draw(st.booleans()) else cut(draw, b"".join(whole), 12)
    return Answer(EVENT_STREAM, packets, draw(st.booleans()))


def of_length(draw: Draw, body: bytes) -> Answer:
    """Some bytes may be missing, or be beyond the length."""
    length = max(0, len(body) + draw(st.sampled_from((0, 0, 0, 7, -7))))
    return Answer(OF_LENGTH % length, pieces_of(draw, body), draw(st.booleans()))


def until_the_end(draw: Draw, body: bytes) -> Answer:
    return Answer(UNTIL_THE_END, pieces_of(draw, body), draw(st.booleans()))


REFUSAL = b'{"type":"error","error":{"type":"invalid_request_error","message":"no"}}'


def refused(answer: Answer) -> Answer:
    return dataclasses.replace(answer, head=answer.head.replace(b"200 OK", b"400 Bad Request"))


Framing = Callable[[Draw, bytes], Answer]
FRAMINGS: tuple[Framing, ...] = (chunked, of_length, until_the_end)
VERSIONS = st.sampled_from((b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"))

# --- what it leads to ---------------------------------------------------------------------------------------------


@dataclass
class Play:
    """What a script has led to."""

    steps: list[list[Any]] = field(default_factory=list)
    """For each packet: the client's bytes so far, and the hooks, connections and timers in between."""
    requests: list[bytes] = field(default_factory=list)
    """What the upstream was sent."""
    records: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    on_arrival: bytearray = field(default_factory=bytearray)
    """What the client got without mitmproxy's server."""


class Stage:
    """A bridge to play scripts to."""

    def __init__(self, folder: Path) -> None:
        self._database = folder / "aibridge.db"
        given = {"database": f"sqlite:///{self._database}", "metrics": {"listen": None}, "providers": PROVIDERS}
        self.bridge = Bridge(Settings.model_validate(given))
        self._emit = self.bridge.emit
        self._records: list[Any] = []
        self.bridge.emit = self._spied

    def _spied(self, record: records.Record) -> None:
        self._records.append(record)
        self._emit(record)

    async def play(self, script: Script, *, sockets: bool = False) -> Play:
        self._records.clear()
        self.bridge.servers = self.bridge.continuations = None
        if script.offers:
            offer(self.bridge, self._database, TOOL)
        play = await Player(Scene(self.bridge, self._database), sockets=sockets).play(script)
        assert len(self.bridge.in_flight) == 0
        play.records = [(type(record).__name__, values(record)) for record in self._records]
        return play


class Sockets:
    """The sockets of an upstream and of its client, and mitmproxy's server, which waits for packets."""

    def __init__(self, upstream: Server, send: Callable[[bytes], object]) -> None:
        """`send` gets what is written to the client without mitmproxy's server."""
        assert isinstance(upstream, PlainServer)
        self.client = ClientTransport(send)
        self.reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        writer = asyncio.StreamWriter(self.client, protocol, None, asyncio.get_running_loop())
        self.active = 0
        """How often the connection was noted to be active."""
        upstream.arrivals = arrivals = Arrivals(self.reader, writer, self._register_activity)
        self.reader.feed_data = arrivals.take  # type: ignore[method-assign,assignment]
        self._read: asyncio.Task[bytes] | None = None

    def _register_activity(self) -> None:
        self.active += 1

    async def arrive(self, packet: bytes) -> bytes:
        """A packet arrives. Returns what is left to mitmproxy's server."""
        if self._read is None:
            self._read = asyncio.create_task(self.reader.read(2**16))
            await asyncio.sleep(0)
        self.reader.feed_data(packet)
        await asyncio.sleep(0)
        if not self._read.done():
            return b""
        data, self._read = self._read.result(), None
        return data

    def close(self) -> None:
        if self._read is not None:
            self._read.cancel()


class ClientTransport(asyncio.WriteTransport):
    """The client's socket."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        super().__init__()
        self._send = send
        self.unsent = 0
        """Bytes that the client has not taken yet."""
        self._closed = False

    def write(self, data: Any) -> None:
        self._send(data)

    def close(self) -> None:
        self._closed = True

    def is_closing(self) -> bool:
        return self._closed

    def get_write_buffer_size(self) -> int:
        return self.unsent


class Player:
    """Plays the client and the upstream of one script."""

    def __init__(self, scene: Scene, *, sockets: bool = False) -> None:
        """`sockets`: packets arrive at sockets, otherwise at mitmproxy's layers."""
        self._scene = scene
        self._has_sockets = sockets
        self._sockets: Sockets | None = None
        self._playbook = scene.playbook
        self._play = Play()
        self._sent = bytearray()
        self._upstream: Server
        self._timers: list[commands.RequestWakeup] = []

    async def play(self, script: Script) -> Play:
        """Play a script. In the end the client disconnects, if the answer goes on."""
        playbook = self._playbook
        ctx.options = self._scene.layer.context.options
        asked = request(script.request, PATHS[script.dialect]).replace(b"HTTP/1.1", script.version, 1)
        await self._scene.ask(asked)
        await self._step()
        for number, answer in enumerate(script.answers):
            if len(self._play.requests) <= number:
                break  # the turns before have ended otherwise
            await self._answer(answer, waits=script.waits)
        if self._scene.layer.streams and self._scene.client.connected:
            playbook.close(self._scene.client)
            await self._step()
        self._close_sockets()
        return self._play

    def _forwarded(self, data: bytes) -> None:
        self._sent += data
        self._play.on_arrival += data

    def _close_sockets(self) -> None:
        if self._sockets is not None:
            self._sockets.close()

    async def _answer(self, answer: Answer, *, waits: bool) -> None:
        playbook, upstream = self._playbook, self._upstream
        await self._receive(answer.head)
        await self._step()
        for packet in answer.packets:
            if not upstream.connected:
                break
            await self._receive(packet)
            if not waits:
                await self._step()
        if answer.closes and upstream.connected:
            playbook.close(upstream)
        await self._step()
        while self._timers:
            playbook.wake(self._timers.pop(0))
            await self._step()

    async def _receive(self, packet: bytes) -> None:
        if self._sockets is not None:
            packet = await self._sockets.arrive(packet)
        if packet:
            self._playbook.receive(self._upstream, packet)
        self._sent += self._playbook.sent(self._scene.client)

    async def _step(self) -> None:
        """Let the addon do its part of all hooks. Note what has happened."""
        scene, playbook, happened = self._scene, self._playbook, list[Any]()
        while True:
            self._sent += playbook.sent(scene.client)
            if playbook.next_is(commands.StartHook):
                hook = playbook.expect(commands.StartHook)
                happened.append(hook.name)
                await scene.run(hook)
                playbook.done(hook)
            elif playbook.next_is(commands.OpenConnection):
                self._upstream = playbook.connect()
                if self._has_sockets:
                    self._close_sockets()
                    self._sockets = Sockets(self._upstream, self._forwarded)
                happened.append("connected")
            elif playbook.next_is(commands.CloseConnection):
                closed = playbook.expect(commands.CloseConnection).connection
                happened.append("client closed" if closed is scene.client else "upstream closed")
            elif playbook.next_is(commands.RequestWakeup):
                timer = playbook.expect(commands.RequestWakeup)
                if timer.delay <= END_TIMEOUT:  # others are keep-alives
                    self._timers.append(timer)
            elif playbook.next_is(commands.SendData):
                self._play.requests.append(playbook.sent(self._upstream))
            else:
                self._play.steps.append([in_one_spelling(bytes(self._sent)), *happened])
                return


UNLIKE = (
    *("id", "interception_id", "started_at", "ended_at", "created_at", "expires_at"),
    *("time_to_first_byte_ms", "duration_ms", "seconds"),
)
"""Members of records that differ each time."""


def values(record: Any) -> dict[str, Any]:
    found = dataclasses.asdict(record)
    return {name: value for name, value in found.items() if name not in UNLIKE}


def in_one_spelling(sent: bytes) -> bytes:
    """Write the sizes of the chunks of an answer in the ordinary way's spelling."""
    head, blank_line, body = sent.partition(b"\r\n\r\n")
    if b"\r\ntransfer-encoding: chunked" not in head.lower():
        return sent
    chunks = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        assert body[length : length + 2] == b"\r\n"
        chunks += chunk(body[:length])
        body = body[length + 2 :]
    return head + blank_line + chunks
