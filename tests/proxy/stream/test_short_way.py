"""The short way of streamed answers: what takes it, and that bytes, hooks and records are those of the ordinary way."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mitmproxy import ctx
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon import records
from aibridge_addon.bridge import Bridge
from aibridge_addon.config.schema import Settings
from aibridge_addon.proxy.stream import short_way
from aibridge_addon.proxy.stream.short_way import SWITCH
from tests.proxy.conftest import MakeScene
from tests.support import fixtures
from tests.support.fixtures import Case
from tests.support.scene import CHUNKED_END, EVENT_STREAM, PATHS, PROVIDERS, Scene, chunk, request
from tests.support.soak import MANY, TIMEOUT

STREAM = fixtures.case("messages/simple/streaming")
EVENTS = STREAM.body.split(b"\n\n")
EVENTS = [event + b"\n\n" for event in EVENTS if event]
STREAMS = [case for case in fixtures.cases() if case.streaming and case.dialect in PATHS and case.status < 400]


# --- which packets take it ----------------------------------------------------------------------------------------


class Spied(short_way.ShortWay):
    taken: list[bytes]

    def take(self, event: events.DataReceived) -> Any:
        self.taken.append(event.data)
        return super().take(event)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The packets on the short way."""
    packets: list[bytes] = []
    monkeypatch.setattr(Spied, "taken", packets, raising=False)
    monkeypatch.setattr(short_way, "ShortWay", Spied)
    return packets


async def test_chunks_are_forwarded_with_their_framing(scene: Scene, taken: list[bytes]) -> None:
    upstream = await scene.answer_stream(STREAM)
    packet = b"00%X\r\n%s\r\n" % (len(EVENTS[0]), EVENTS[0]) + chunk(EVENTS[1])
    scene.playbook.receive(upstream, packet)
    assert scene.playbook.sent(scene.client) == packet
    assert taken == [packet]
    await end(scene, upstream)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(STREAM.body),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
    ],
    ids=["a length", "until the end of the connection"],
)
async def test_bodies_without_chunks_take_the_ordinary_way(scene: Scene, taken: list[bytes], head: bytes) -> None:
    await scene.ask(request(STREAM.request))
    upstream = scene.playbook.connect()
    scene.playbook.sent(upstream)
    await scene.answer(upstream, head)
    scene.playbook.sent(scene.client)
    scene.playbook.receive(upstream, EVENTS[0])
    assert scene.playbook.sent(scene.client) == EVENTS[0]
    assert taken == []
    await end(scene, upstream)


async def test_the_switch_lets_all_packets_take_the_ordinary_way(
    make_scene: MakeScene, taken: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    scene = make_scene()
    upstream = await scene.answer_stream(STREAM)
    scene.playbook.receive(upstream, chunk(EVENTS[0]))
    assert scene.playbook.sent(scene.client) == chunk(EVENTS[0])
    assert taken == []
    await end(scene, upstream)


async def test_a_part_of_a_chunk_is_forwarded_at_once_and_the_next_whole_chunk_is_short_again(
    scene: Scene, taken: list[bytes]
) -> None:
    upstream = await scene.answer_stream(STREAM)
    whole = chunk(EVENTS[0])
    scene.playbook.receive(upstream, whole + whole[:20])
    begun = scene.playbook.sent(scene.client)
    assert begun.startswith(whole) and begun.endswith(whole[whole.index(b"\r\n") + 2 : 20] + b"\r\n")
    scene.playbook.receive(upstream, whole[20:])
    assert scene.playbook.sent(scene.client).endswith(EVENTS[0][-5:] + b"\r\n")
    scene.playbook.receive(upstream, chunk(EVENTS[1]))
    assert scene.playbook.sent(scene.client) == chunk(EVENTS[1])
    assert taken == [whole + whole[:20], chunk(EVENTS[1])]
    await end(scene, upstream)


async def test_an_error_while_a_chunk_is_read_comes_after_the_chunks_before_it(scene: Scene) -> None:
    upstream = await scene.answer_stream(STREAM)
    stream: Any = scene.layer.streams[1]
    read, seen = stream.answer.exchange.tap.feed, []

    def breaking(data: bytes) -> int | None:
        seen.append(data)
        if len(seen) == 2:
            raise RuntimeError("broken")
        found: int | None = read(data)
        return found

    stream.answer.exchange.tap.feed = breaking
    scene.playbook.receive(upstream, chunk(EVENTS[0]) + chunk(EVENTS[1]))
    assert scene.playbook.sent(scene.client) == chunk(EVENTS[0])
    await scene.hook(hooks.HttpErrorHook)
    scene.playbook.expect_close(upstream)
    assert b"event: error" in scene.playbook.sent(scene.client)
    await scene.expect_to_go_on()


async def end(scene: Scene, upstream: Server) -> None:
    """The client disconnects."""
    scene.playbook.close(scene.client)
    scene.playbook.expect_close(upstream)
    await scene.hook(hooks.HttpErrorHook)
    scene.playbook.sent(scene.client)
    while scene.playbook.next_is(commands.CloseConnection):
        scene.playbook.expect_close(scene.client)


# --- both ways do the same ----------------------------------------------------------------------------------------


@dataclass
class Play:
    """What an answer has led to."""

    steps: list[list[Any]] = field(default_factory=list)
    """For each packet: the client's bytes so far, without framing, and the hooks and closed connections."""
    records: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Stage:
    """A bridge that plays answers to requests, on the way that is asked for."""

    def __init__(self, folder: Path) -> None:
        database = folder / "aibridge.db"
        given = {"database": f"sqlite:///{database}", "metrics": {"listen": None}, "providers": PROVIDERS}
        self.bridge = Bridge(Settings.model_validate(given))
        self._database = database
        self._emit = self.bridge.emit
        self._records: list[Any] = []
        self.bridge.emit = self._spied

    def _spied(self, record: records.Record) -> None:
        self._records.append(record)
        self._emit(record)

    async def play(self, case: Case, packets: list[bytes], *, closes: bool, waits: bool) -> Play:
        """Play an answer. `closes`: the upstream then closes its connection. `waits`: hooks take until the end."""
        self._records.clear()
        scene = Scene(self.bridge, self._database)
        ctx.options = scene.layer.context.options
        await scene.ask(request(case.request, PATHS[case.dialect]))
        upstream = scene.playbook.connect()
        scene.playbook.sent(upstream)
        await scene.answer(upstream, EVENT_STREAM)
        play, sent = Play(), bytearray()
        for packet in packets:
            scene.playbook.receive(upstream, packet)
            if not waits:
                play.steps.append(await self._handled(scene, sent))
            if not upstream.connected:
                break
        if closes and upstream.connected:
            scene.playbook.close(upstream)
        if closes or waits:
            play.steps.append(await self._handled(scene, sent))
        if scene.layer.streams and scene.client.connected:
            scene.playbook.close(scene.client)
            play.steps.append(await self._handled(scene, sent))
        assert len(self.bridge.in_flight) == 0
        play.records = [(type(record).__name__, values(record)) for record in self._records]
        return play

    async def _handled(self, scene: Scene, sent: bytearray) -> list[Any]:
        """Let the addon do its part of all hooks. Return what has happened."""
        happened: list[Any] = []
        while True:
            sent += scene.playbook.sent(scene.client)
            if scene.playbook.next_is(commands.StartHook):
                hook = scene.playbook.expect(commands.StartHook)
                happened.append(hook.name)
                await scene.run(hook)
                scene.playbook.done(hook)
            elif scene.playbook.next_is(commands.CloseConnection):
                closed = scene.playbook.expect(commands.CloseConnection).connection
                closed.state = ConnectionState.CLOSED
                happened.append("client closed" if closed is scene.client else "upstream closed")
            else:
                return [without_framing(bytes(sent)), *happened]


UNLIKE = ("id", "interception_id", "started_at", "ended_at", "created_at", "time_to_first_byte_ms", "seconds")
"""Members of records that differ each time."""


def values(record: Any) -> dict[str, Any]:
    found = dataclasses.asdict(record)
    return {name: value for name, value in found.items() if name not in UNLIKE}


def without_framing(data: bytes) -> bytes:
    """Return the payload of a head and chunks, and `<end>` for the last chunk. Padded sizes are read as well."""
    _, _, data = data.partition(b"\r\n\r\n") if data.startswith(b"HTTP/") else (b"", b"", data)
    payload = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        assert data[length : length + 2] == b"\r\n"
        payload += data[:length] if length else b"<end>"
        data = data[length + 2 :]
    return payload


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running:
        yield running


@pytest.fixture(scope="module")
def stage(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    async def opened() -> Stage:
        made = Stage(tmp_path_factory.mktemp("stage"))
        made.bridge.start()
        return made

    made = runner.run(opened())
    yield made
    runner.run(made.bridge.close(10))


HEADS = (b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"%x;a=b\r\n", b"%x \r\n", b"000000000%x\r\n")
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


def cut(draw: Any, whole: bytes, most: int) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=most)))
    return [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)]) if end > start]


@st.composite
def answers(draw: Any) -> tuple[Case, list[bytes]]:
    """A fixture's stream in any chunks, which come in any packets."""
    case: Case = draw(st.sampled_from(STREAMS))
    if draw(st.booleans()):
        pieces = [event + b"\n\n" for event in case.body.split(b"\n\n") if event]
    else:
        pieces = cut(draw, case.body, 8)
    framed = [draw(st.sampled_from(HEADS)) % len(piece) + piece + b"\r\n" for piece in pieces]
    whole = [*framed, draw(st.sampled_from(ENDS))]
    packets = [packet for packet in whole if packet] if draw(st.booleans()) else cut(draw, b"".join(whole), 12)
    return case, packets


@TIMEOUT
@settings(MANY, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(answer=answers(), closes=st.booleans(), waits=st.booleans())
def test_both_ways_lead_to_the_same_bytes_hooks_and_records(
    runner: asyncio.Runner,
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[Case, list[bytes]],
    closes: bool,
    waits: bool,
) -> None:
    case, packets = answer
    monkeypatch.delenv(SWITCH, raising=False)
    short = runner.run(stage.play(case, packets, closes=closes, waits=waits))
    monkeypatch.setenv(SWITCH, "1")
    ordinary = runner.run(stage.play(case, packets, closes=closes, waits=waits))
    assert short.steps == ordinary.steps
    assert short.records == ordinary.records
