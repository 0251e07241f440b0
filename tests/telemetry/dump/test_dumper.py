"""The files of dumps: their names and rights, what is in them, and what happens when they cannot be written."""

from __future__ import annotations

import http.client
import io
import logging
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aibridge_addon.config.errors import ConfigError
from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.telemetry.dump import dumper as dumper_module
from aibridge_addon.telemetry.dump.dumper import Dump, Dumper, Head, safe_name

POST = Head(b"POST /v1/messages HTTP/1.1", [(b"host", b"x"), (b"content-length", b"9")], None)
OK = Head(b"HTTP/1.1 200 OK", [(b"content-type", b"text/event-stream")], None)
MS = 1_767_268_800_123

MakeDumper = Callable[..., Dumper]


@pytest.fixture
def make_dumper(tmp_path: Path) -> Iterator[MakeDumper]:
    made: list[Dumper] = []

    def make(max_queued: int = dumper_module.MAX_QUEUED) -> Dumper:
        dumper = Dumper(tmp_path / "dumps", redact=bytes, limit=1_000_000, max_queued=max_queued, now=lambda: MS / 1000)
        dumper.start()
        made.append(dumper)
        return dumper

    yield make
    for dumper in made:
        dumper.close(10)


def opened(dumper: Dumper, name: str = "id-t1-a1", model: str = "m") -> Dump:
    made = dumper.open("anthropic", model, name)
    assert made is not None
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_request_and_its_answer_are_two_files(make_dumper: MakeDumper, tmp_path: Path) -> None:
    dumper = make_dumper()
    made = opened(dumper)
    made.request(POST, b'{"a":1}')
    made.request_ended()
    made.answer_head(OK)
    made.answer_data(b"data: 1\n\n")
    made.end()
    dumper.close(10)
    assert files(tmp_path / "dumps") == {
        f"anthropic/m/{MS}-id-t1-a1.req.txt": b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n"
        b'x-aibridge-wire-content-length: 9\r\ncontent-length: 13\r\n\r\n{\n  "a": 1\n}\n',
        f"anthropic/m/{MS}-id-t1-a1.resp.txt": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n",
    }


def test_an_answer_file_is_read_by_what_reads_http(make_dumper: MakeDumper, tmp_path: Path) -> None:
    dumper = make_dumper()
    made = opened(dumper)
    made.request(POST, b"{}")
    made.answer_head(Head(b"HTTP/1.1 200 OK", [(b"transfer-encoding", b"chunked"), (b"x", b"1")], None))
    made.answer_data(b"{}")
    made.end()
    dumper.close(10)
    [content] = [content for name, content in files(tmp_path / "dumps").items() if ".resp" in name]

    class Wire:
        def makefile(self, mode: str) -> io.BytesIO:
            return io.BytesIO(content)

    answer = http.client.HTTPResponse(Wire())  # type: ignore[arg-type]
    answer.begin()
    assert (answer.status, answer.getheader("x"), answer.read()) == (200, "1", b"{}")


def test_a_streamed_request_is_written_as_it_comes(make_dumper: MakeDumper, tmp_path: Path) -> None:
    dumper = make_dumper()
    made = opened(dumper)
    made.request(POST, None)
    made.request_data(b"a\n")
    made.request_data(b"b")
    made.request_ended()
    made.end("gone")
    dumper.close(10)
    assert files(tmp_path / "dumps") == {
        f"anthropic/m/{MS}-id-t1-a1.req.txt": b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n"
        b"x-aibridge-wire-content-length: 9\r\n\r\na\nb",
        f"anthropic/m/{MS}-id-t1-a1.req_error.txt": b"gone\n",
    }


def test_an_answer_that_breaks_off_says_so_at_its_end(make_dumper: MakeDumper, tmp_path: Path) -> None:
    dumper = make_dumper()
    made = opened(dumper)
    made.request(POST, b"{}")
    made.answer_head(OK)
    made.answer_data(b"data: 1\n\nhalf")
    made.end("the upstream broke off: peer closed")
    made.end("again")
    made.answer_data(b"late")
    dumper.close(10)
    [answer] = [content for name, content in files(tmp_path / "dumps").items() if ".resp" in name]
    assert answer.endswith(b"data: 1\n\nhalf\n[aibridge: the upstream broke off: peer closed]\n")


def test_what_is_open_at_the_end_is_closed_and_says_so(make_dumper: MakeDumper, tmp_path: Path) -> None:
    dumper = make_dumper()
    made = opened(dumper)
    made.request(POST, b"{}")
    made.answer_head(OK)
    made.answer_data(b"half")
    dumper.close(10)
    [answer] = [content for name, content in files(tmp_path / "dumps").items() if ".resp" in name]
    assert answer.endswith(b"\r\n\r\nhalf\n[aibridge: the bridge was stopped]\n")


# --- names and rights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("meta/llama-3.1", "meta-llama-3.1"),
        ("..", "unknown"),
        ("../../etc/passwd", "-..-etc-passwd"),
        ("/", "-"),
        (".hidden", "hidden"),
        ("", "unknown"),
        ("a\x00b\nc", "a-b-c"),
        ("a\\b:c*?", "a-b-c--"),
        ("модель", "------"),
        ("m" * 5000, "m" * 100),
        ("anthropic.claude-v2:1", "anthropic.claude-v2-1"),
    ],
)
def test_a_name_stays_in_its_folder_whatever_a_client_calls_its_model(text: str, name: str) -> None:
    assert safe_name(text) == name


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_read_them_whatever_the_umask(make_dumper: MakeDumper, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        dumper = make_dumper()
        made = opened(dumper)
        made.request(POST, b"{}")
        made.answer_head(OK)
        made.end()
        dumper.close(10)
    finally:
        os.umask(before)
    modes = {path.is_dir(): stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "dumps").rglob("*")}
    assert modes == {True: 0o700, False: 0o600}
    assert stat.S_IMODE((tmp_path / "dumps").stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["file", "link"])
def test_nothing_is_overwritten(
    make_dumper: MakeDumper, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    place = tmp_path / "dumps" / "anthropic" / "m" / f"{MS}-id-t1-a1.req.txt"
    place.parent.mkdir(parents=True)
    if kind == "link":
        place.symlink_to(target)
    else:
        place.write_text("precious")
    dumper = make_dumper()
    opened(dumper).request(POST, b"{}")
    dumper.close(10)
    assert (place.read_text(), target.read_text()) == ("precious", "precious")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


# --- what cannot be written ---------------------------------------------------------------------------------------


def test_names_of_folders_and_files_have_no_secrets(tmp_path: Path) -> None:
    secret = "sk-ant-api03-0123456789abcdefghij"
    dumper = Dumper(tmp_path / "dumps", redact=Redactor(["patient-[0-9]+"]).encoded, limit=1_000)
    dumper.start()
    long = "IQoJb3JpZ2lu" + "A" * 200
    dump = dumper.open("anthropic", f"m{secret}", "id", path=f"v1/models/{secret}/{long}-patient-1-" + "x" * 1000)
    assert dump is not None
    dump.request(POST, b"{}")
    dump.end()
    dumper.close(10)
    [file] = (tmp_path / "dumps").rglob("*.txt")
    assert file.parent.name == "m-redacted-"
    path = "v1-models--redacted---redacted---redacted--" + "x" * 60
    assert file.name.partition("-")[2] == f"{path[:60]}-id.req.txt"


def test_a_folder_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"dump_dir: .*file"):
        Dumper(tmp_path / "file" / "dumps", redact=bytes, limit=1).start()


FULL = """
    import logging, resource, sys, time
    from pathlib import Path
    from aibridge_addon.telemetry.dump.dumper import Dumper, Head

    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # as a disk that is full after so many bytes
    dumper = Dumper(Path(sys.argv[1]), redact=bytes, limit=1)
    dumper.start()
    dumps = [dumper.open("anthropic", "m", str(number)) for number in range(20)]
    for dump in dumps:
        dump.request(Head(b"POST / HTTP/1.1", [], None), b"{}")
        dump.answer_head(Head(b"HTTP/1.1 200 OK", [], None))
    for dump in dumps:
        dump.answer_data(b"x" * 20_000 + b"\\n")
    dumper.close(10)
    assert dumper.open("anthropic", "m", "later") is None
    for dump in dumps:
        dump.answer_data(b"x")
        dump.end()
    print("done")
"""


def test_a_full_disk_ends_the_dumps_with_one_error_and_nothing_else(tmp_path: Path) -> None:
    """In a process of its own, for the limit is the whole process's."""
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    error, done = ended.stdout.splitlines()
    assert error.startswith("ERROR dump_dir: no more dumps, a file cannot be written: [Errno 27]")
    assert (done, ended.stderr) == ("done", "")


def test_what_the_disk_cannot_take_in_time_is_cut_and_says_so(make_dumper: MakeDumper, tmp_path: Path) -> None:
    dumper = make_dumper(10 * dumper_module.PUT_COST)
    made = opened(dumper)
    made.request(POST, b"{}")
    made.answer_head(OK)
    made.answer_data(b"fits\n")
    made.answer_data(b"x" * 10 * dumper_module.PUT_COST)
    made.answer_data(b"comes after the gap\n")
    made.end()
    dumper.close(10)
    [answer] = [content for name, content in files(tmp_path / "dumps").items() if ".resp" in name]
    assert answer.endswith(b"\r\n\r\nfits\n\n[aibridge: cut: the disk was too slow for the rest]\n")


def test_a_request_that_finds_no_room_leaves_a_file_that_says_so(make_dumper: MakeDumper, tmp_path: Path) -> None:
    dumper = make_dumper(0)
    made = opened(dumper)
    made.request(POST, b"{}")
    made.end()
    dumper.close(10)
    assert files(tmp_path / "dumps") == {
        f"anthropic/m/{MS}-id-t1-a1.req_error.txt": b"cut: the disk was too slow for the rest\n"
    }


def test_only_so_many_are_open_at_a_time(make_dumper: MakeDumper, caplog: pytest.LogCaptureFixture) -> None:
    dumper = make_dumper()
    made = [opened(dumper, str(number)) for number in range(dumper_module.MAX_OPEN)]
    assert dumper.open("anthropic", "m", "x") is dumper.open("anthropic", "m", "y") is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    for one in made:
        one.end()
    dumper.close(10)
    assert dumper.open("anthropic", "m", "z") is not None
