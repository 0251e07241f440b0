"""What earlier answers left for later requests: who finds it, where, and for how long."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from aibridge_addon import records
from aibridge_addon.dialects import CHAT_COMPLETIONS, MESSAGES, RESPONSES
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.history import Found, References, RequestHistory
from aibridge_addon.dialects.messages.reader import Messages
from aibridge_addon.dialects.place import Place, Position
from aibridge_addon.dialects.turns import Call, Result, Text, TurnEnd
from aibridge_addon.interception import continuations
from aibridge_addon.interception.continuations import ALIASES_KEPT_FOR, RESULTS_KEPT_FOR, Continuations
from aibridge_addon.interception.scope import Kind, Scope
from aibridge_addon.interception.tool_loop import MixedTurn
from aibridge_addon.recording.reader import AsyncReader
from aibridge_addon.recording.sqlite import reader, store
from aibridge_addon.recording.sqlite.reader import SqliteReader
from aibridge_addon.recording.sqlite.store import SqliteStore
from aibridge_addon.records import DatabaseUnavailable, Stored
from aibridge_addon.wire.json_object import JSONObject
from tests.support.database import query
from tests.support.databases import SqliteDatabase, prune
from tests.support.examples import STARTED
from tests.support.reading import NOON

ADA = Scope("anthropic", "ada", MESSAGES, "key 1")
OTHERS = {
    "another user": replace(ADA, initiator_id="eve"),
    "another provider": replace(ADA, provider_name="b"),
    "another credential": replace(ADA, credential="key 2"),
    "another wire format": replace(ADA, dialect=CHAT_COMPLETIONS),
}
REQUEST = JSONObject(
    b'{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a"}]},{"role":"user","content":"?"}],'
    b'"diagnostics":{"previous_message_id":"msg_1"}}'
)
COMPLETED = (
    b'{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a"},{"type":"tool_use","id":"x",'
    b'"input":{"n":1.5}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"x","content":'
    b'[{"type":"text","text":"so"}]},{"type":"text","text":"?"}]}],"diagnostics":{"previous_message_id":"msg_2"}}'
)
assert MESSAGES.history is not None
HISTORY = MESSAGES.history.read(REQUEST)
NAMED = HISTORY.references()
[PLACE] = NAMED.calls


async def completed(kept: Continuations, scope: Scope, request: RequestHistory) -> bytes | None:
    found = await kept.find(scope, request.references())
    return request.completed(found) if found else None


START = Position(PLACE.after)
"""The position of the answer with the call: nothing stands before it."""


OURS = Call("x", "bmcp_t_x", {}, {"type": "tool_use", "id": "x", "input": {"n": 1.5}})
THOUGHT = {"type": "thinking", "signature": "sig"}


def mixed(text: str = "so", client_call: str = "a") -> MixedTurn:
    call = OURS
    said = ({"type": "tool_use", "id": name} for name in (client_call, "b"))
    return MixedTurn("msg_2", (Result(call, (Text(text),)),), (client_call, "b"), (*said, call.item))


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


class Nothing:
    """A reader of an empty database."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.error: DatabaseUnavailable | None = None

    async def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        self.asked.append(set(keys))
        if self.error is not None:
            raise self.error
        return {}

    def close(self) -> None: ...


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "aibridge.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


Write = Callable[..., None]


@pytest.fixture
def write(path: Path, clock: Clock) -> Iterator[Write]:
    """Write records as one process does."""
    store = SqliteStore(path, durable=False, now=clock)

    def write(*batch: records.Record) -> None:
        if store._db is None:
            store.open()
        store.write(batch)

    yield write
    store.close()


@pytest.fixture
def one(path: Path, clock: Clock) -> Iterator[Continuations]:
    reader = SqliteReader(path)
    yield Continuations(AsyncReader(reader), now=clock)
    reader.close()


@pytest.fixture
def other(path: Path, clock: Clock) -> Iterator[Continuations]:
    reader = SqliteReader(path)
    yield Continuations(AsyncReader(reader), now=clock)
    reader.close()


def rows(path: Path) -> int:
    return int(query(path, "select count(*) as n from aibridge_continuations")[0]["n"])


# --- finding ----------------------------------------------------------------------------------------------------


async def test_what_was_remembered_is_found_at_once_though_nothing_is_written(one: Continuations) -> None:
    assert len(one.remember(ADA, position=START, mixed=mixed(), alias=("msg_1", "msg_2"))) == 2
    assert await completed(one, ADA, HISTORY) == COMPLETED


async def test_another_process_on_the_same_database_finds_it_and_makes_the_same_bytes(
    one: Continuations, other: Continuations, write: Write
) -> None:
    write(*one.remember(ADA, position=START, mixed=mixed(), alias=("msg_1", "msg_2")))
    assert await completed(other, ADA, HISTORY) == await completed(one, ADA, HISTORY) == COMPLETED
    assert await other.find(ADA, NAMED) == await one.find(ADA, NAMED)


async def test_what_a_process_that_has_ended_left_is_found(path: Path, other: Continuations) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from aibridge_addon.interception.continuations import Continuations\n"
        "from aibridge_addon.recording.reader import AsyncReader\n"
        "from aibridge_addon.recording.sqlite.reader import SqliteReader\n"
        "from aibridge_addon.recording.sqlite.store import SqliteStore\n"
        "from tests.interception.test_continuations import ADA, NOON, START, mixed\n"
        "path = Path(sys.argv[1]); store = SqliteStore(path, durable=True, now=lambda: NOON)\n"
        "mine = Continuations(AsyncReader(SqliteReader(path)), now=lambda: NOON)\n"
        "left = mine.remember(ADA, position=START, mixed=mixed(), alias=('msg_1', 'msg_2'))\n"
        "store.open(); store.write(left); store.close()\n"
    )
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, path, cwd=root)
    try:
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert await completed(other, ADA, HISTORY) == COMPLETED


@pytest.mark.parametrize("who", OTHERS)
async def test_another_scope_finds_nothing(one: Continuations, other: Continuations, write: Write, who: str) -> None:
    scope, hidden = OTHERS[who], (TurnEnd(content=[THOUGHT, OURS.item]), (Result(OURS, (Text("so"),)),))
    write(*one.remember(ADA, position=START, mixed=mixed(), alias=("msg_1", "msg_2"), hidden=[hidden]))
    thought = replace(NAMED, reasoning=frozenset(("sig",)))
    assert (await other.find(ADA, thought)).followers and (await other.find(ADA, thought)).turns
    for place in (one, other):
        assert not await place.find(scope, thought)
        assert await completed(place, scope, HISTORY) is None


async def test_calls_of_another_session_are_not_found(one: Continuations) -> None:
    one.remember(replace(ADA, session="s1"), position=START, mixed=mixed(), alias=("msg_1", "msg_2"))
    for session in ("", "s2"):
        assert await one.find(replace(ADA, session=session), NAMED) == Found({"msg_1": "msg_2"})


async def test_a_turn_is_found_by_each_of_its_places_and_kept_once(
    one: Continuations, other: Continuations, write: Write
) -> None:
    records = one.remember(ADA, position=Position(PLACE.after, named=True), mixed=mixed(), alias=("msg_2", "msg_2"))
    write(*records)
    assert ["kept" in record.value for record in records] == [True, False]
    by_answer = Place(("answer", "msg_2"), "a")
    for place in (one, other):
        found = await place.find(ADA, References(calls=frozenset((PLACE, by_answer))))
        assert found.turns[PLACE] == found.turns[by_answer]
        assert not await place.find(ADA, References(calls=frozenset((Place(("answer", "msg_3"), "a"),))))


@pytest.mark.parametrize(
    "place",
    [PLACE._replace(after=("history", "0")), PLACE._replace(call="0"), PLACE._replace(call_id="b")],
    ids=["what stands before", "arguments", "id"],
)
async def test_a_call_at_another_place_is_another_call(one: Continuations, place: Place) -> None:
    one.remember(ADA, position=START, mixed=mixed())
    assert not await one.find(ADA, References(calls=frozenset((place,))))


def _called(name: str) -> Dialect:
    dialect: Dialect = type("Called", (Messages,), {"name": name})()
    return dialect


async def test_of_a_dialect_without_a_history_nothing_is_kept(one: Continuations) -> None:
    scope = replace(ADA, dialect=Messages())
    assert one.remember(scope, position=START, mixed=mixed(), alias=("msg_1", "msg_2")) == []
    assert await completed(one, scope, HISTORY) is None


async def test_the_parts_of_a_scope_cannot_be_shifted_into_each_other() -> None:
    scopes = [("a", "bc", "d"), ("ab", "c", "d"), ('a","b', "c", "d"), ("a", 'b","c', "d")]
    kinds: tuple[Kind, ...] = ("answer", "call")
    keys = {
        Scope(provider, actor, _called(dialect), "").key(kind, "x")
        for provider, actor, dialect in scopes
        for kind in kinds
    }
    assert len(keys) == 2 * len(scopes)


@pytest.mark.parametrize(
    ("turn", "alias"),
    [
        (None, None),
        (None, ("msg_1", "msg_1")),
        (None, ("", "msg_2")),
        (replace(mixed(), client_calls=("",)), None),
        (replace(mixed(), content=()), None),
        (replace(mixed(), results=()), None),
    ],
)
async def test_what_later_requests_do_not_need_is_not_kept(
    one: Continuations, turn: MixedTurn | None, alias: tuple[str, str] | None
) -> None:
    assert one.remember(ADA, position=START, mixed=turn, alias=alias) == []


async def test_of_two_under_the_same_id_the_later_one_counts(
    path: Path, one: Continuations, other: Continuations, write: Write
) -> None:
    write(*one.remember(ADA, alias=("msg_1", "msg_2")))
    write(*one.remember(ADA, alias=("msg_1", "msg_3")), *one.remember(ADA, alias=("msg_1", "msg_4")))
    assert rows(path) == 1
    for place in (one, other):
        assert await place.find(ADA, NAMED) == Found({"msg_1": "msg_4"})


@pytest.mark.parametrize("value", ["{}", "[]", '{"last":1,"client_calls":"a"}', "nonsense"])
async def test_a_value_that_another_version_wrote_is_not_used(
    path: Path, one: Continuations, other: Continuations, write: Write, value: str
) -> None:
    write(*one.remember(ADA, position=START, mixed=mixed(), alias=("msg_1", "msg_2")))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("update aibridge_continuations set value = ?", (value,))
    assert not await other.find(ADA, NAMED)


# --- for how long -----------------------------------------------------------------------------------------------


async def test_it_expires_in_memory_and_in_the_database(
    one: Continuations, other: Continuations, write: Write, clock: Clock
) -> None:
    write(*one.remember(ADA, position=START, mixed=mixed(), alias=("msg_1", "msg_2")))
    clock.now = NOON + RESULTS_KEPT_FOR - timedelta(seconds=1)
    assert len((await one.find(ADA, NAMED)).turns) == 1
    clock.now = NOON + RESULTS_KEPT_FOR
    for place in (one, other):
        assert await place.find(ADA, NAMED) == Found({"msg_1": "msg_2"})
    clock.now = NOON + ALIASES_KEPT_FOR
    for place in (one, other):
        assert not await place.find(ADA, NAMED)


async def test_expired_rows_are_deleted_and_aliases_are_kept_for_longer(
    path: Path, one: Continuations, write: Write
) -> None:
    write(*one.remember(ADA, position=START, mixed=mixed(), alias=("msg_1", "msg_2")))
    assert rows(path) == 2
    for lifetime, left in ((RESULTS_KEPT_FOR, 1), (ALIASES_KEPT_FOR, 0)):
        prune(SqliteDatabase(path), NOON + lifetime, rows=timedelta(hours=1))
        assert rows(path) == left


# --- how much ---------------------------------------------------------------------------------------------------


async def test_results_that_are_too_large_are_reported_and_not_kept(path: Path, clock: Clock) -> None:
    sizes: list[int] = []
    one = Continuations(AsyncReader(SqliteReader(path)), now=clock, on_too_large=sizes.append)
    assert one.remember(ADA, position=START, mixed=mixed("long" * 2**19), alias=("msg_1", "msg_2"))[1:] == []
    assert [size > continuations.MAX_VALUE for size in sizes] == [True]
    assert await one.find(ADA, NAMED) == Found({"msg_1": "msg_2"})
    one.close()


async def test_of_results_that_are_too_large_reasoning_is_followed_by_a_note(one: Continuations) -> None:
    thought = {"type": "reasoning", "id": "rs_1"}
    call = Call("x", "bmcp_t_x", {}, {"type": "function_call", "call_id": "x"})
    turn = (TurnEnd(content=[thought, call.item]), (Result(call, (Text("long" * 2**19),)),))
    scope = replace(ADA, dialect=RESPONSES)
    one.remember(scope, hidden=[turn])
    found = await one.find(scope, References(reasoning=frozenset(("rs_1",))))
    assert b"too large" in bytes(found.followers["rs_1"].items[1])


@pytest.mark.parametrize("bound", ["MAX_ENTRIES", "MAX_BYTES"])
async def test_what_falls_out_of_memory_is_in_the_database(
    one: Continuations, write: Write, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    size = len(b'{"last":"l0"}')
    monkeypatch.setattr(continuations, bound, 3 if bound == "MAX_ENTRIES" else 3 * size)
    for n in range(6):
        write(*one.remember(ADA, alias=(f"m{n}", f"l{n}")))
    assert (len(one._known), one._known_bytes) == (3, 3 * size)
    found = await one.find(ADA, References(ids=frozenset(f"m{n}" for n in range(6))))
    assert found.aliases == {f"m{n}": f"l{n}" for n in range(6)}
    assert (len(one._known), one._known_bytes) == (3, 3 * size)


async def test_one_read_takes_no_more_than_a_request_may_have(
    one: Continuations, other: Continuations, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_READ", 30)
    for n in range(6):
        write(*one.remember(ADA, alias=(f"m{n}", f"l{n}")))
    assert len((await other.find(ADA, References(ids=frozenset(f"m{n}" for n in range(6))))).aliases) == 2


async def test_the_database_is_not_asked_again_for_what_it_did_not_have(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Nothing()
    place = Continuations(reader, now=clock)
    await place.find(ADA, NAMED)
    b = PLACE._replace(call_id="b")
    await place.find(ADA, replace(NAMED, calls=frozenset((PLACE, b))))
    first, second = ADA.place_key("call", PLACE), ADA.place_key("call", b)
    assert reader.asked == [{ADA.key("answer", "msg_1"), first}, {second}]
    await place.find(ADA, NAMED)
    assert len(reader.asked) == 2
    clock.now += continuations.ABSENT_FOR
    await place.find(ADA, NAMED)
    assert reader.asked[2] == reader.asked[0]
    monkeypatch.setattr(continuations, "MAX_ABSENT", 1)
    await place.find(ADA, References(calls=frozenset(PLACE._replace(call_id=name) for name in "cde")))
    assert len(place._absent) == 1
    place.remember(ADA, position=START, mixed=mixed())
    assert (await place.find(ADA, NAMED)).turns


async def test_a_request_that_names_nothing_asks_nobody() -> None:
    reader = Nothing()
    assert MESSAGES.history is not None
    history = MESSAGES.history.read(JSONObject(b'{"messages":[]}'))
    assert await completed(Continuations(reader, now=Clock()), ADA, history) is None
    assert reader.asked == []


# --- a database that does not answer ----------------------------------------------------------------------------


class Noting(SqliteReader):
    """A reader that notes the threads which call it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.threads: list[int] = []

    def read(self, keys: Sequence[str], now: datetime) -> Mapping[str, Stored]:
        self.threads.append(threading.get_ident())
        return {}


async def test_the_database_is_never_asked_on_the_event_loop(path: Path) -> None:
    reader = Noting(path)
    place = Continuations(AsyncReader(reader), now=Clock())
    await place.find(ADA, NAMED)
    assert len(reader.threads) == 1 and threading.get_ident() not in reader.threads


async def test_a_database_that_cannot_be_read_gives_nothing_and_is_reported_once(clock: Clock) -> None:
    reader = Nothing()
    reader.error = DatabaseUnavailable("it is away")
    errors: list[DatabaseUnavailable] = []
    place = Continuations(reader, now=clock, on_unreadable=errors.append)
    place.remember(ADA, alias=("msg_1", "msg_2"))
    for _ in range(3):
        assert await place.find(ADA, NAMED) == Found({"msg_1": "msg_2"})
    assert len(reader.asked) == 3, "that it cannot be read does not mean that there is nothing"
    assert errors == [reader.error]


async def test_a_file_that_is_not_there_yet_is_found_when_it_is(
    one: Continuations, other: Continuations, write: Write
) -> None:
    assert not await other.find(ADA, NAMED)
    write(*one.remember(ADA, position=START, mixed=mixed(), alias=("msg_1", "msg_2")))
    assert await completed(other, ADA, HISTORY) == COMPLETED


async def test_a_locked_file_gives_nothing_until_it_is_free_again(
    path: Path, one: Continuations, other: Continuations, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "BUSY_TIMEOUT", 0)
    monkeypatch.setattr(store, "BUSY_TIMEOUT_MS", 0)
    left = one.remember(ADA, position=START, mixed=mixed(), alias=("msg_1", "msg_2"))
    with closing(sqlite3.connect(path, isolation_level=None)) as owner:
        owner.execute("pragma locking_mode = exclusive")
        owner.execute("begin exclusive")
        assert not await other.find(ADA, NAMED)
        owner.execute("rollback")
    write(*left)
    assert await completed(other, ADA, HISTORY) == COMPLETED


def test_a_reader_makes_no_file(path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="unable to open"):
        SqliteReader(path).read(["x"], NOON)
    assert not path.exists()


def test_a_reader_cannot_write_and_may_be_closed_twice(path: Path, write: Write) -> None:
    write(STARTED)
    reader = SqliteReader(path)
    assert reader.read(["x"], NOON) == {}
    assert reader._db is not None
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._db.execute("delete from aibridge_interceptions")
    reader.close()
    reader.close()
    assert reader.read(["x"], NOON) == {}
    reader.close()
