"""The files of the spool: what was appended is read again, in its order, however its process ended."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon import records
from aibridge_addon.recording.spool import LOOK_AGAIN, Backlog, Spool, remove_old
from aibridge_addon.records import Continuation, ModelThought, Record, ToolResult
from tests.support.examples import ANSWER, ENDED, PLAN_LIMIT, PROMPT, STARTED, THOUGHT, TOKENS, TOOL
from tests.support.reading import NOON

EXAMPLES: Sequence[Record] = (
    replace(STARTED, instance_id="instance-1"),
    replace(PROMPT, id="1"),
    replace(TOKENS, id="2", extra={"nested": {"a": [1, 2.5, None, True, "é"]}}),
    replace(TOOL, id="3", input={"path": "a\nb", "n": [1]}),
    replace(ANSWER, id="4"),
    replace(THOUGHT, id="5"),
    PLAN_LIMIT,
    ToolResult("i2", "toolu_1", "done", is_error=False, truncated=True, created_at=NOON),
    Continuation("key", {"kept": [{"type": "tool_result"}]}, NOON),
    ENDED,
)


def spool_in(folder: Path, *, max_bytes: int = 2**30, **options: Any) -> Spool:
    return Spool(folder, "db", max_bytes=max_bytes, **options)


def all_of(source: Spool | Backlog, limit: int = 100) -> list[Record]:
    """Read all records and move on behind them."""
    found: list[Record] = []
    while (chunk := source.read(limit)) is not None:
        found += chunk.records
        source.done(chunk)
    return found


def adopted(spool: Spool) -> list[Record]:
    """Adopt and remove everything that processes which have ended left behind."""
    found: list[Record] = []
    while (backlog := spool.adopt()) is not None:
        found += all_of(backlog)
        spool.drop_adopted()
    return found


def thoughts(count: int, first: int = 0) -> list[Record]:
    return [ModelThought("i", "r", str(n), "thinking", NOON, id=str(n)) for n in range(first, first + count)]


def ids(found: Sequence[Record]) -> list[str]:
    """`==` does not compare the ids of rows."""
    return [record.id for record in found if isinstance(record, ModelThought)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def test_there_is_an_example_of_every_record_that_is_stored() -> None:
    assert {type(record) for record in EXAMPLES} == records.STORED


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_is_the_same_after_the_spool(tmp_path: Path, record: Record) -> None:
    spool = spool_in(tmp_path)
    assert spool.append([record]) == 0
    [read] = all_of(spool)
    assert read == record
    assert getattr(read, "id", None) == getattr(record, "id", None)
    spool.close()


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]))), limit=st.integers(1, 5))
def test_any_text_is_the_same_after_the_spool(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], limit: int
) -> None:
    spool = spool_in(tmp_path_factory.mktemp("spool"), segment_bytes=200, durable=False)
    written = [replace(THOUGHT, content=text) for text in texts]
    for record in written:
        spool.append([record])
    assert all_of(spool, limit) == written
    spool.clear()
    assert not list(spool.folder.iterdir())
    spool.close()


def test_records_keep_their_order_over_many_files_and_free_their_space(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, segment_bytes=300)
    for record in thoughts(20):
        spool.append([record])
    assert len(files(tmp_path)) > 5
    assert spool.size == sum(file.stat().st_size for file in files(tmp_path))
    first = spool.read(100)
    assert first is not None
    spool.done(first)
    spool.read(100)
    before = spool.size
    assert len(files(tmp_path)) * 300 - 300 <= before
    found = [*first.records, *all_of(spool)]
    assert ids(found) == [str(n) for n in range(20)]
    spool.append(thoughts(1, first=20))
    assert ids(all_of(spool)) == ["20"], "reading goes on where it was"
    spool.clear()
    assert list(tmp_path.iterdir()) == [] and spool.size == 0
    spool.append(thoughts(1))
    assert ids(all_of(spool)) == ["0"], "it can be used again"
    spool.close()


def test_other_users_cannot_read_the_files(tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "a" / "spool")
    spool.append(thoughts(1))
    assert (tmp_path / "a" / "spool").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in spool.folder.iterdir()} == {0o600}
    spool.close()


# --- a process that ends


def test_files_of_a_living_process_are_not_adopted(tmp_path: Path) -> None:
    living, other = spool_in(tmp_path), spool_in(tmp_path)
    living.append(thoughts(3))
    assert other.adopt() is None
    living.close()
    assert ids(adopted(other)) == ["0", "1", "2"]
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_database_are_not_adopted(tmp_path: Path) -> None:
    of_another = Spool(tmp_path, "another database", max_bytes=2**30)
    of_another.append(thoughts(1))
    of_another.close()
    assert spool_in(tmp_path).adopt() is None
    assert len(files(tmp_path)) == 1


def test_what_was_adopted_and_not_finished_is_adopted_again(tmp_path: Path) -> None:
    ended = spool_in(tmp_path)
    ended.append(thoughts(5))
    ended.close()
    second = spool_in(tmp_path)
    backlog = second.adopt()
    assert backlog is not None and spool_in(tmp_path).adopt() is None
    chunk = backlog.read(3)
    assert chunk is not None
    backlog.done(chunk)
    second.close()
    assert ids(adopted(spool_in(tmp_path))) == ["0", "1", "2", "3", "4"]


def test_files_of_several_processes_are_adopted_one_after_the_other(tmp_path: Path) -> None:
    for number in range(3):
        ended = spool_in(tmp_path)
        ended.append(thoughts(2, first=number * 2))
        ended.close()
    assert sorted(ids(adopted(spool_in(tmp_path)))) == [str(n) for n in range(6)]
    assert list(tmp_path.iterdir()) == []


def test_files_whose_lock_was_removed_are_adopted(tmp_path: Path) -> None:
    ended = spool_in(tmp_path)
    ended.append(thoughts(2))
    ended.close()
    for lock in tmp_path.glob("*.lock"):
        lock.unlink()
    assert ids(adopted(spool_in(tmp_path))) == ["0", "1"]
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_process_that_was_killed_are_adopted(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path;"
        "from aibridge_addon.recording.spool import Spool; from tests.recording.test_spool import thoughts;"
        "spool = Spool(Path(sys.argv[1]), 'db', max_bytes=2**30);"
        "spool.append(thoughts(4)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], timeout=60, check=False).returncode == -9
    assert ids(adopted(spool_in(tmp_path))) == ["0", "1", "2", "3"]


# --- damage


def ended_with(folder: Path, count: int) -> Path:
    """Return the file of a process that has ended."""
    spool = spool_in(folder)
    spool.append(thoughts(count))
    spool.close()
    [file] = files(folder)
    return file


def test_a_file_that_was_torn_at_any_place_gives_all_whole_records_before_it(tmp_path: Path) -> None:
    file = ended_with(tmp_path, 3)
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    for length in range(len(content)):
        file.write_bytes(content[:length])
        spool = spool_in(tmp_path)
        whole = next(n for n in range(3, -1, -1) if sum(map(len, lines[:n])) <= length)
        backlog = spool.adopt()
        if length == 0:
            assert backlog is None
            break
        assert backlog is not None
        chunk = backlog.read(100)
        assert chunk is not None and chunk.damaged == 0
        assert ids(chunk.records) == [str(n) for n in range(whole)]
        spool.close()


@pytest.mark.parametrize("where", ["checksum", "payload", "line end"])
def test_a_damaged_record_is_left_out_alone_and_counted(tmp_path: Path, where: str) -> None:
    file = ended_with(tmp_path, 3)
    lines = file.read_bytes().splitlines(keepends=True)
    middle = bytearray(lines[1])
    middle[{"checksum": 2, "payload": 30, "line end": -1}[where]] ^= 1
    file.write_bytes(lines[0] + middle + lines[2])
    backlog = spool_in(tmp_path).adopt()
    assert backlog is not None
    chunk = backlog.read(100)
    assert chunk is not None
    lost = ["1", "2"] if where == "line end" else ["1"]  # two lines became one
    assert (ids(chunk.records), chunk.damaged) == ([n for n in "012" if n not in lost], 1)


@given(content=st.binary(min_size=1, max_size=300))
def test_no_content_of_a_file_raises(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("spool")
    ended_with(folder, 1).write_bytes(content)
    spool = spool_in(folder)
    assert adopted(spool) == []


def test_a_file_that_was_removed_does_not_hold_up_the_others(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, segment_bytes=100)
    for record in thoughts(3):
        spool.append([record])
    files(tmp_path)[1].unlink()
    assert ids(all_of(spool)) == ["0", "2"]
    spool.close()


def test_a_record_of_a_newer_version_is_read_without_its_new_members(tmp_path: Path) -> None:
    file = ended_with(tmp_path, 1)
    import zlib

    payload = file.read_bytes()[9:-1].replace(b'"sequence"', b'"from_a_newer_version":1,"sequence"')
    file.write_bytes(b"%08x %s\n" % (zlib.crc32(payload), payload))
    assert ids(adopted(spool_in(tmp_path))) == ["0"]


# --- bounds


def test_no_more_than_the_bound_is_written(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, max_bytes=2_000, segment_bytes=500)
    dropped = sum(spool.append([record]) for record in thoughts(100))
    assert 0 < spool.size <= 2_000
    kept = all_of(spool)
    assert ids(kept) == [str(n) for n in range(len(kept))] and len(kept) + dropped == 100
    assert spool.append(thoughts(1)) == 0, "there is room again"
    spool.close()


def test_the_bound_includes_what_other_processes_left_in_the_folder(tmp_path: Path) -> None:
    other = Spool(tmp_path, "another database", max_bytes=2**30)
    other.append(thoughts(20))
    spool = spool_in(tmp_path, max_bytes=other.size + 300)
    assert spool.append(thoughts(20)) >= 15
    other.close()
    spool.close()


def test_there_is_room_again_once_another_process_has_emptied_its_files(tmp_path: Path) -> None:
    clock = [0.0]
    other = Spool(tmp_path, "another database", max_bytes=2**30)
    other.append(thoughts(20))
    [left] = files(tmp_path)
    spool = spool_in(tmp_path, max_bytes=other.size, now=lambda: clock[0])
    assert spool.append(thoughts(1)) == 1
    left.unlink()
    clock[0] = LOOK_AGAIN / 2
    assert spool.append(thoughts(1)) == 1
    clock[0] = LOOK_AGAIN
    assert spool.append(thoughts(2)) == 0
    other.close()
    spool.close()


def test_a_record_that_json_cannot_express_is_dropped_alone(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    broken = replace(THOUGHT, content="\ud800")
    assert spool.append([*thoughts(1), broken, *thoughts(1, first=1)]) == 1
    assert ids(all_of(spool)) == ["0", "1"]
    spool.close()


def test_a_write_that_fails_half_way_leaves_no_piece_of_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spool_in(tmp_path)
    spool.append(thoughts(2))
    write = os.write

    def full(fd: int, data: bytes) -> int:
        write(fd, bytes(data)[:10])
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="no space left"):
            spool.append(thoughts(1, first=2))
    spool.append(thoughts(1, first=3))
    assert ids(all_of(spool)) == ["0", "1", "3"]
    spool.close()


def test_a_file_whose_name_cannot_be_synced_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_in(tmp_path)

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="input/output error"):
            spool.append(thoughts(1))
    assert files(tmp_path) == [] and spool.size == 0
    spool.append(thoughts(1, first=1))
    assert ids(all_of(spool)) == ["1"]
    spool.close()


def test_a_folder_that_cannot_be_made_is_an_error_until_it_can(tmp_path: Path) -> None:
    place = tmp_path / "spool"
    place.write_text("no folder")
    spool = spool_in(place)
    for _ in range(2):
        with pytest.raises(OSError, match="spool"):
            spool.append(thoughts(1))
    place.unlink()
    assert spool.append(thoughts(1)) == 0
    assert ids(all_of(spool)) == ["0"]
    spool.close()


# --- files that no process uses any more ------------------------------------------------------------------------


def age(folder: Path, days: int) -> None:
    for path in folder.glob("*.log"):
        os.utime(path, (NOON.timestamp() - days * 86_400,) * 2)


def test_old_files_of_another_database_are_removed_when_no_process_has_them(tmp_path: Path) -> None:
    gone = spool_in(tmp_path, segment_bytes=1)
    for record in EXAMPLES[:3]:
        gone.append([record])
    age(tmp_path, 61)
    before = NOON - timedelta(days=60)
    assert remove_old(tmp_path, "other", before) == 0, "its process lives"
    gone.close()
    assert remove_old(tmp_path, "db", before) == 0, "it is adopted"
    assert remove_old(tmp_path, "other", before - timedelta(days=2)) == 0, "it is not old"
    assert remove_old(tmp_path, "other", before) == 3
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_in_the_folder_of_the_spool_stay(tmp_path: Path) -> None:
    for name in ("notes.log", "a.b.log", "x.txt"):
        (tmp_path / name).write_text("mine")
    age(tmp_path, 100)
    assert remove_old(tmp_path, "db", NOON) == 0
    assert remove_old(tmp_path / "missing", "db", NOON) == 0
    assert len(list(tmp_path.iterdir())) == 3
