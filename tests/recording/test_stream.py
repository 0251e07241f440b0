"""What sinks get of the stream, and what becomes of one that fails. The recorder's tests hold the batches."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon.bridge import SINKS, Bridge
from aibridge_addon.config.schema import Settings
from aibridge_addon.recording.recorder import Recorder
from aibridge_addon.recording.spool import Spool
from aibridge_addon.recording.stream import RecordStream
from aibridge_addon.records import Ask, Continuation, Record, Sink, Tunnelled
from aibridge_addon.records.memory import Memory
from tests.support.database import read_table
from tests.support.examples import INSTANCE, PROMPT, STARTED, THOUGHT, TOKENS, TOOL
from tests.support.reading import NOON
from tests.support.stores import MemoryStore

KEPT = Continuation("key", {"results": ["sk-ant-0123456789abcdef"]}, NOON)


class JsonLines(Sink):
    """Writes what it gets to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def emit(self, records: Sequence[Record]) -> None:
        with self._path.open("a") as file:
            for record in records:
                file.write(json.dumps({"record": type(record).__name__} | asdict(record), default=str) + "\n")


class Kept(Sink):
    """Remembers what it gets."""

    def __init__(self, *, durable: bool = False) -> None:
        self.durable = durable
        self.records: list[Record] = []
        self.threads: set[int] = set()
        self.closed = 0

    def emit(self, records: Sequence[Record]) -> None:
        self.records += records
        self.threads.add(threading.get_ident())

    def close(self, timeout: float | None) -> None:
        self.closed += 1


class Failing(Kept):
    def emit(self, records: Sequence[Record]) -> None:
        super().emit(records)
        raise ValueError("a bug")


def unchanged(record: Record) -> Record:
    return record


def bridge(tmp_path: Path, *more: Callable[[Settings, Ask], Sink], **config: Any) -> Bridge:
    database = f"sqlite:///{tmp_path / 'aibridge.db'}"
    settings = {"database": database, "metrics": {"listen": None}, **config}
    return Bridge(Settings.model_validate(settings), (*SINKS, *more))


async def test_a_new_sink_gets_redacted_texts_prices_and_no_continuation(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    made = bridge(tmp_path, lambda _settings, _whole: JsonLines(file), recording={"thoughts": False})
    made.start()
    tokens = replace(TOKENS, unpriced=None, vendor="anthropic", model="claude-sonnet-4-5", cache_write_input_tokens=0)
    for record in (STARTED, PROMPT, tokens, replace(TOKENS, unpriced=None, vendor=None), TOOL, THOUGHT, KEPT):
        made.emit(record)
    assert await made.committed()
    await made.close(10)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert "sk-ant-" not in file.read_text()
    assert [line["record"] for line in lines] == [
        "InterceptionStarted",
        "UserPrompt",
        "TokenUsage",
        "TokenUsage",
        "ToolUsage",
        "ModelThought",
    ]
    assert [line["cost_usd"] is None for line in lines[2:4]] == [False, True]
    assert [line["unpriced"] is None for line in lines[2:4]] == [True, False]
    assert lines[5]["content"] is None
    rows = read_table(tmp_path / "aibridge.db", "aibridge_token_usages")
    assert [row["cost_usd"] for row in rows] == [line["cost_usd"] for line in lines[2:4]]


async def test_a_sink_that_raises_is_logged_once_and_cut_off_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing, other = Failing(), Kept()
    made = bridge(tmp_path, lambda _settings, _whole: failing, lambda _settings, _whole: other)
    made.start()
    made.emit(STARTED)
    assert await made.committed()
    made.emit(PROMPT)
    assert await made.committed()
    await made.close(10)
    assert (len(failing.records), len(other.records), made.stream.lost) == (1, 2, 0)
    assert len(read_table(tmp_path / "aibridge.db", "aibridge_user_prompts")) == 1
    [logged] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert logged.getMessage() == "aibridge: Failing failed and gets no more records"
    assert logged.exc_info is not None


async def test_a_database_that_is_cut_off_commits_nothing_and_counts_its_losses() -> None:
    stream = RecordStream([Failing(durable=True)], unchanged)
    stream.start()
    stream.emit(PROMPT)
    assert not await stream.committed()
    assert stream.lost == 1
    await stream.drain(10)


async def test_no_sink_runs_on_the_event_loop() -> None:
    sink = Kept()
    stream = RecordStream([sink], unchanged)
    stream.start()
    stream.emit(PROMPT)
    assert await stream.committed()
    await stream.drain(10)
    assert sink.records == [PROMPT] and threading.get_ident() not in sink.threads


async def test_a_record_that_cannot_be_prepared_reaches_no_sink_and_is_lost() -> None:
    def prepare(record: Record) -> Record:
        if record is PROMPT:
            raise ValueError("a bug")
        return record

    sink = Kept()
    stream = RecordStream([sink], prepare)
    stream.start()
    for record in (STARTED, PROMPT, THOUGHT):
        stream.emit(record)
    assert not await stream.committed(), "a row is missing"
    assert await stream.committed(), "none since"
    await stream.drain(10)
    assert (sink.records, stream.lost) == ([STARTED, THOUGHT], 1)


class Late(Kept):
    """Returns from `emit` when the recorder has dealt with the same records."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def emit(self, records: Sequence[Record]) -> None:
        super().emit(records)
        while self._recorder.readiness().waiting:
            pass


async def test_a_refused_record_is_not_committed_however_late_the_flush_comes(tmp_path: Path) -> None:
    store = MemoryStore()
    store.refused = [PROMPT]
    recorder = Recorder(store, Spool(tmp_path, "db", max_bytes=2**20), INSTANCE)
    stream = RecordStream([recorder, Late(recorder)], unchanged)
    stream.start()
    stream.emit(PROMPT)
    assert not await stream.committed()
    stream.emit(THOUGHT)
    assert await stream.committed()
    await stream.drain(10)
    assert (store.records, stream.lost) == ([THOUGHT], 1)


async def test_what_has_no_row_is_not_lost_when_it_comes_too_late() -> None:
    stream = RecordStream([Kept()], unchanged)
    stream.start()
    await stream.drain(10)
    stream.emit(Tunnelled())
    assert stream.lost == 0
    stream.emit(THOUGHT)
    assert stream.lost == 1


class Unclosable(Kept):
    def close(self, timeout: float | None) -> None:
        super().close(timeout)
        raise ValueError("a bug")


async def test_a_sink_that_cannot_be_closed_leaves_no_other_open() -> None:
    broken, last = Unclosable(), Kept()
    stream = RecordStream([broken, last], unchanged)
    stream.start()
    await stream.drain(None)
    stream._thread.join(10)
    assert broken.closed and last.closed


async def test_records_that_wait_are_bounded_in_bytes_too() -> None:
    sink = Kept(durable=True)
    stream = RecordStream([sink], unchanged, memory=Memory(100_000))
    large = replace(PROMPT, prompt="x" * 60_000)
    for record in (large, large, STARTED, replace(TOOL, input={"text": "x" * 60_000})):
        stream.emit(record)
    assert (stream.lost, stream.depth) == (2, 2)
    stream.start()
    assert not await stream.committed()  # two are missing
    stream.emit(large)  # there is room again
    assert await stream.committed()
    await stream.drain(10)
    assert sink.records == [large, STARTED, large]
