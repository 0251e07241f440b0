"""The short way of streamed answers: what takes it, and that bytes, hooks and records are those of the ordinary way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mitmproxy.connection import Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.proxy.stream import short_way
from aibridge_addon.proxy.stream.hooks import AibridgeCommitHook
from aibridge_addon.proxy.stream.short_way import SWITCH
from tests.integration.turns import DIALECTS, Turns, call, own, text, thought
from tests.proxy.conftest import MakeScene
from tests.support import fixtures
from tests.support.fixtures import Case
from tests.support.offered_tools import offer
from tests.support.scene import CHUNKED_END, EVENT_STREAM, PATHS, Scene, chunk, request
from tests.support.soak import MANY, TIMEOUT
from tests.support.streams import Block
from tests.support.ways import (
    FRAMINGS,
    OF_LENGTH,
    REFUSAL,
    TOOL,
    UNTIL_THE_END,
    VERSIONS,
    Answer,
    Framing,
    Play,
    Player,
    Script,
    Stage,
    refused,
)

STREAM = fixtures.case("messages/simple/streaming")
EVENTS = STREAM.body.split(b"\n\n")
EVENTS = [event + b"\n\n" for event in EVENTS if event]
LAST = STREAM.body.index(b"event: message_stop")
STREAMS = [case for case in fixtures.cases() if case.streaming and case.dialect in PATHS and case.status < 400]

HIDDEN = call(TOOL, what="a house")
TURNS = (
    [[text("Let me see."), HIDDEN], [text("It is small.")]],
    [[HIDDEN, HIDDEN], [thought("It is small."), HIDDEN], [text("Done.")]],
    [[thought("Which one?"), HIDDEN, own(path="a")], [text("Both.")]],
)


# --- which packets take it ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packets take the short way, also where `make ordinary` has switched it off."""
    monkeypatch.delenv(SWITCH, raising=False)


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


def as_it_is(data: bytes) -> bytes:
    return data


Frame = Callable[[bytes], bytes]
LENGTH = OF_LENGTH % len(STREAM.body)


@pytest.mark.parametrize(
    ("head", "of_upstream", "of_client", "offers", "version"),
    [
        (LENGTH, as_it_is, as_it_is, False, b"HTTP/1.1"),
        (UNTIL_THE_END, as_it_is, as_it_is, False, b"HTTP/1.1"),
        (EVENT_STREAM, chunk, chunk, True, b"HTTP/1.1"),
        (LENGTH, as_it_is, chunk, True, b"HTTP/1.1"),
        (UNTIL_THE_END, as_it_is, as_it_is, True, b"HTTP/1.1"),
        (EVENT_STREAM, chunk, as_it_is, False, b"HTTP/1.0"),
        (EVENT_STREAM, chunk, as_it_is, True, b"HTTP/1.0"),
    ],
    ids=[
        "a length",
        "until the end",
        "chunks with tools offered",
        "a length with tools offered",
        "until the end with tools offered",
        "chunks for HTTP 1.0",
        "chunks with tools offered for HTTP 1.0",
    ],
)
async def test_each_framing_becomes_the_clients(
    scene: Scene,
    taken: list[bytes],
    head: bytes,
    of_upstream: Frame,
    of_client: Frame,
    offers: bool,
    version: bytes,
) -> None:
    if offers:
        offer(scene.bridge, scene.database, TOOL)
    upstream = await begin(scene, head, version)
    packet = of_upstream(EVENTS[0])
    scene.playbook.receive(upstream, packet)
    assert scene.playbook.sent(scene.client) == of_client(EVENTS[0])
    assert taken == [packet]
    await end(scene, upstream)


@pytest.mark.parametrize("beyond", [b"", b"HTTP/1.1 200 OK"], ids=["nothing beyond it", "more beyond it"])
async def test_a_packet_that_completes_a_length_takes_the_ordinary_way(
    scene: Scene, taken: list[bytes], beyond: bytes
) -> None:
    upstream = await begin(scene, LENGTH)
    packets = [EVENTS[0], EVENTS[1], b"".join(EVENTS[2:]) + beyond]
    for packet in packets:
        scene.playbook.receive(upstream, packet)
    sent = scene.playbook.sent(scene.client)
    await scene.hook(AibridgeCommitHook)
    if beyond:
        scene.playbook.expect_close(upstream)
    sent += scene.playbook.sent(scene.client)
    await scene.hook(hooks.HttpResponseHook)
    assert sent == STREAM.body
    assert taken == packets[:2]


async def test_later_turns_take_it_in_the_framing_of_the_first(scene: Scene, taken: list[bytes]) -> None:
    offer(scene.bridge, scene.database, TOOL)
    turns = Turns("messages", *TURNS[0])
    first = Answer(UNTIL_THE_END, turns.events(0), closes=True)
    second = Answer(EVENT_STREAM, [*map(chunk, turns.events(1)), CHUNKED_END], closes=False)
    play = await Player(scene).play(Script("messages", turns.request(streaming=True), [first, second], offers=True))
    assert taken == first.packets + second.packets
    sent = play.steps[-1][0]
    assert sent.endswith(turns.events(1)[-1]) and b"It is small." in sent


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


async def test_a_packet_that_comes_while_a_hook_waits_is_sent_after_the_answers_end(
    scene: Scene, taken: list[bytes]
) -> None:
    upstream = await scene.answer_stream(STREAM)
    more = chunk(b": more\n\n")
    for packet in [chunk(STREAM.body), more]:
        scene.playbook.receive(upstream, packet)
    begun = scene.playbook.sent(scene.client)
    await scene.hook(AibridgeCommitHook)
    assert begun + scene.playbook.sent(scene.client) == chunk(STREAM.body[:LAST]) + chunk(STREAM.body[LAST:]) + more
    assert taken == [chunk(STREAM.body)]
    await end(scene, upstream)


async def test_the_rest_of_a_chunk_is_no_chunk_of_its_own(scene: Scene, taken: list[bytes]) -> None:
    upstream = await scene.answer_stream(STREAM)
    comments = b":abc\r\n:ddddddddddd\r\n"
    whole = chunk(comments)
    assert whole.startswith(b"14\r\n"), "its rest begins as a chunk of four bytes"
    scene.playbook.receive(upstream, whole[:1])
    scene.playbook.receive(upstream, whole[1:])
    assert scene.playbook.sent(scene.client) == whole
    assert taken == [whole[:1]]
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


async def begin(scene: Scene, head: bytes, version: bytes = b"HTTP/1.1") -> Server:
    """The answer to a client of this version has begun. Returns the upstream connection."""
    await scene.ask(request(STREAM.request).replace(b"HTTP/1.1", version, 1))
    upstream = scene.playbook.connect()
    scene.playbook.sent(upstream)
    await scene.answer(upstream, head)
    scene.playbook.sent(scene.client)
    if scene.playbook.next_is(commands.RequestWakeup):  # for keep-alives
        scene.playbook.expect(commands.RequestWakeup)
    return upstream


async def end(scene: Scene, upstream: Server) -> None:
    """The client disconnects."""
    scene.playbook.close(scene.client)
    scene.playbook.expect_close(upstream)
    await scene.hook(hooks.HttpErrorHook)
    scene.playbook.sent(scene.client)
    while scene.playbook.next_is(commands.CloseConnection):
        scene.playbook.expect_close(scene.client)


# --- all ways do the same -----------------------------------------------------------------------------------------


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


PlayAll = Callable[[Script], Play]


@pytest.fixture
def play_all(runner: asyncio.Runner, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> PlayAll:
    """Play a script on all ways, which do the same."""

    def play(script: Script) -> Play:
        monkeypatch.delenv(SWITCH, raising=False)
        short = runner.run(stage.play(script))
        arriving = runner.run(stage.play(script, sockets=True))
        monkeypatch.setenv(SWITCH, "1")
        ordinary = runner.run(stage.play(script))
        for play in short, arriving:
            assert play.steps == ordinary.steps
            assert play.requests == ordinary.requests
            assert play.records == ordinary.records
        return short

    return play


MANY_SCRIPTS = settings(MANY, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.parametrize("offers", [False, True], ids=["unchanged", "tools offered"])
@pytest.mark.parametrize("framing", FRAMINGS)
@TIMEOUT
@MANY_SCRIPTS
@given(data=st.data(), case=st.sampled_from(STREAMS), version=VERSIONS, waits=st.booleans())
def test_all_ways_lead_to_the_same_bytes_hooks_and_records(
    play_all: PlayAll,
    offers: bool,
    framing: Framing,
    data: st.DataObject,
    case: Case,
    version: bytes,
    waits: bool,
) -> None:
    answer = framing(data.draw, case.body)
    play_all(Script(case.dialect, case.request, [answer], offers=offers, version=version, waits=waits))


@TIMEOUT
@MANY_SCRIPTS
@given(
    data=st.data(),
    dialect=st.sampled_from(DIALECTS),
    said=st.sampled_from(TURNS),
    version=VERSIONS,
    waits=st.booleans(),
)
def test_all_ways_hide_the_same_calls_and_show_the_same_later_turns(
    play_all: PlayAll, data: st.DataObject, dialect: str, said: list[list[Block]], version: bytes, waits: bool
) -> None:
    turns = Turns(dialect, *said)
    answers = [data.draw(st.sampled_from(FRAMINGS))(data.draw, written.stream) for written in turns.written]
    if data.draw(st.booleans()):
        answers[-1] = refused(data.draw(st.sampled_from(FRAMINGS))(data.draw, REFUSAL))
    asked = turns.request(streaming=True)
    play = play_all(Script(dialect, asked, answers, offers=True, version=version, waits=waits))
    assert b"bmcp_" in play.requests[0]
    assert b"bmcp_" not in play.steps[-1][0]
    assert "internal_error" not in str(play.records)
