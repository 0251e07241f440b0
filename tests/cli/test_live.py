"""`aibridge live`: the screen at any size, one snapshot as text and JSON, and a terminal that is restored."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len
from rich.console import Console

from aibridge_addon import cli
from aibridge_addon.cli.live_screen import Problem, View, draw
from aibridge_addon.recording.live import Snapshot
from aibridge_addon.recording.reports import Usage
from aibridge_addon.recording.rows import timestamp
from tests.support.databases import Database, PostgresDatabase, SqliteDatabase, write
from tests.support.examples import ENDED, STARTED, TOKENS, uid
from tests.support.polling import poll_until

NOW = datetime(2026, 11, 28, 9, 14, 50, tzinfo=UTC)
ZONE = ZoneInfo("Europe/Berlin")
HOSTILE = "\x1b[2J\u202e<b>[red]\x00\ud800" + "x" * 1000
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
"""The sequences of a terminal's alternate screen."""
ROOT = Path(cli.__file__).parents[2]


def ago(seconds: float) -> str:
    return timestamp(NOW - timedelta(seconds=seconds))


def row(**more: Any) -> dict[str, Any]:
    return {
        "id": uid("a"),
        "initiator_id": "alice",
        "client": "Claude Code",
        "provider_name": "anthropic",
        "model": "claude-sonnet-4-5",
        "session_id": "s",
        "started_at": ago(42),
        "silent": False,
        "turns": 2,
        "input_tokens": 12,
        "cache_read_input_tokens": 41_000,
        "cache_write_input_tokens": 1_000,
        "output_tokens": 157,
        "cost_usd": 0.0211,
        "ended_at": ago(2),
        "status": "completed",
        "http_status": 200,
        "error_type": None,
        "time_to_first_byte_ms": 250,
    } | more


def snapshot(**more: Any) -> Snapshot:
    usage = Usage(3, 1, 12, 41_000, 1_000, 157, {"api": 1.5, "subscription": 0.25}, {"": 0})
    found = Snapshot(
        at=NOW,
        since=NOW - timedelta(hours=10),
        in_flight=1,
        running=[row()],
        ended=[row(), row(status="failed", http_status=529, error_type="overloaded_error", turns=0, cost_usd=None)],
        today=usage,
        models={"claude-sonnet-4-5": usage},
        actors={"alice": usage},
        recent=usage,
        errors=[
            {
                "error_type": "overloaded_error",
                "http_status": 529,
                "provider_name": "anthropic",
                "failed": 4,
                "last_at": ago(2),
            }
        ],
        limits=[
            {
                "provider_name": "anthropic",
                "credential_hint": "sk-a...efgh",
                "window_name": "5h",
                "used_ratio": 0.42,
                "limit_value": None,
                "remaining": None,
                "resets_at": ago(-3600),
                "observed_at": ago(2),
            }
        ],
    )
    return replace(found, **more)


def lines(view: View, width: int, height: int | None = 24, now: datetime = NOW) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height or 100, highlight=False, emoji=False, markup=False)
    console.print(draw(view, now, width, height))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def view(**more: Any) -> View:
    return View("sqlite:///aibridge.db", ZONE, snapshot(**more))


def test_a_screen_has_every_part() -> None:
    shown = lines(view(), 80)
    assert shown[:5] == [
        "aibridge live (q: end)  sqlite:///aibridge.db  2026-11-28 10:14:50 Europe/Berlin",
        "Today  3 requests, 1 failed, API 1.50 USD, subscr. 0.25 USD",
        "Per hour  API 9.00 USD, subscr. 1.50 USD, in 72, cached 252k, out 942",
        "In flight: 1 Model                         Turns Input Cached Output    USD  Age",
        "alice        claude-sonnet-4-5                 2    12  42.0k    157 0.0211 42 s",
    ]
    text = "\n".join(shown)
    for part in ("Ended", "10:14:48", "completed", "529 overloaded", "Today by model", "Today by user"):
        assert part in text
    for part in ("Errors of the last hour", "529 overloaded_error", "Limits of plans", "5h", "42%", "11-28 11:14"):
        assert part in text


@pytest.mark.parametrize("height", [1, 2, 4, 5, 7, 10, 24, 60])
@pytest.mark.parametrize("width", [20, 40, 80, 119, 120, 160])
def test_every_screen_fits(width: int, height: int) -> None:
    many = [row(initiator_id=HOSTILE, model=HOSTILE)] * 100
    usage = {f"{HOSTILE}{n}": Usage(10**6, 0, 10**9, 10**12, 10**12, 10**9, {"api": 10.0**6 + n}) for n in range(50)}
    full = view(running=many, ended=many, in_flight=12345, models=usage, actors=usage, errors=[*snapshot().errors] * 9)
    full = replace(full, database=HOSTILE, problem=Problem(HOSTILE, NOW))
    shown = lines(full, width, height)
    assert len(shown) <= max(height, 1)
    assert max(map(cell_len, shown)) <= width


def test_rows_without_room_are_counted() -> None:
    shown = lines(view(running=[row()] * 100, in_flight=250, ended=[row()] * 100), 80)
    assert len(shown) == 24
    (title,) = [line for line in shown if line.startswith("In flight")]
    listed = sum(" 42 s" in line for line in shown)
    assert title.startswith(f"In flight: 250 (+{250 - listed})")


def test_longer_parts_appear_where_there_is_room() -> None:
    narrow, wide = "\n".join(lines(view(), 80)), "\n".join(lines(view(), 160))
    for part in ("Claude Code", "First byte", "250 ms"):
        assert part not in narrow
        assert part in wide
    assert any("Errors of the last hour" in line and "Limits of plans" in line for line in lines(view(), 160))


def test_a_long_name_is_cut_before_a_wide_screen_leaves_out_columns() -> None:
    long = row(initiator_id="a-very-long-name-of-a-user@department.example.com", model="claude-" + "x" * 40)
    shown = "\n".join(lines(view(running=[long], ended=[]), 160))
    assert "Claude Code" in shown and "a-very-long-name" in shown


def test_hostile_names_stay_text() -> None:
    shown = "\n".join(lines(view(running=[row(initiator_id=HOSTILE)]), 300))
    assert r"\x1b[2J\u202e<b>[red]\x00" in shown
    assert not any(character in shown for character in "\x1b\u202e\x00\ud800")


def test_a_request_of_a_silent_process_is_marked() -> None:
    assert "42 s ?" in "\n".join(lines(view(running=[row(silent=True)]), 80))


def test_parts_without_rows_are_left_out_or_say_so() -> None:
    shown = "\n".join(lines(view(running=[], in_flight=0, errors=[], limits=[]), 80))
    assert "In flight: 0" in shown
    assert "Errors" not in shown and "Limits" not in shown


def test_a_database_that_is_away_is_named_with_since_when() -> None:
    away = replace(view(), problem=Problem("PostgreSQL db/x: connection refused", NOW - timedelta(seconds=9)))
    shown = lines(away, 80)
    assert shown[1] == "No database since 10:14:41, trying again: PostgreSQL db/x: connection refused"
    assert shown[2] == "What follows was read at 10:14:50."
    assert any(line.startswith("alice") for line in shown)
    assert len(lines(replace(away, snapshot=None), 80)) == 2


# --- the command -----------------------------------------------------------------------------------------------------


def fill(database: Database, at: datetime) -> None:
    write(
        database,
        replace(STARTED, id=uid("a"), started_at=at),
        replace(STARTED, id=uid("b"), started_at=at, initiator_id="bob"),
        replace(TOKENS, id=uid("t"), interception_id=uid("b"), created_at=at, kind="answer", cost_usd=0.5),
        replace(ENDED, interception_id=uid("b"), ended_at=at),
    )


def run(database: Database, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(["live", *arguments, "--database", database.url]) == 0
    return capsys.readouterr().out


def test_without_a_terminal_one_snapshot_is_printed(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    fill(database, datetime.now(UTC))
    for arguments in ((), ("--once",)):
        printed = run(database, capsys, *arguments)
        assert "In flight: 1" in printed and "ada" in printed and "529 overloaded" in printed
        assert "\x1b" not in printed and "p%40ss" not in printed


def test_json_has_all_parts(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    fill(database, datetime.now(UTC))
    found = json.loads(run(database, capsys, "--json", "--timezone", "UTC"))
    assert list(found) == [
        *("at", "in_flight", "running", "ended", "today", "per_hour", "errors", "limits", "timezone", "database"),
    ]
    assert (found["in_flight"], [each["initiator_id"] for each in found["running"]]) == (1, ["ada"])
    assert [each["error_type"] for each in found["ended"]] == ["overloaded_error"]
    assert found["today"]["totals"]["cost_usd"] == 0.5
    assert [each["initiator_id"] for each in found["today"]["users"]] == ["bob"]
    assert (found["per_hour"]["cost_usd"], found["per_hour"]["of_minutes"]) == (3.0, 10)
    assert found["timezone"] == "UTC"


def test_a_missing_file_fails_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["live", "--once", "--database", f"sqlite:///{tmp_path}/none.db"]) == 1
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "nan", "inf", "-1", "3601"])
def test_a_refresh_without_sense_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["live", "--refresh", seconds])
    assert ended.value.code == 2
    assert "--refresh: a number from 0.1 to 3600 is needed" in capsys.readouterr().err


# --- a terminal ------------------------------------------------------------------------------------------------------


@dataclass
class Terminal:
    """A pseudo terminal with the command in it."""

    process: subprocess.Popen[bytes]
    master: int
    slave: int
    out: bytes = b""
    modes: list[Any] = field(default_factory=list)

    def until(self, text: bytes) -> None:
        """Read until a text has appeared since the last call."""

        def appeared() -> bool:
            self.read()
            return text in self.out

        poll_until(appeared, 60.0, what=f"{text!r} on the screen")
        self.out = self.out[self.out.index(text) + len(text) :]

    def read(self) -> None:
        try:
            self.out += os.read(self.master, 65536)
        except BlockingIOError:
            pass

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def ended(self) -> int:
        def code() -> tuple[int] | None:
            self.read()
            found = self.process.poll()
            return None if found is None else (found,)

        (found,) = poll_until(code, 60.0, what="the end of the command")
        self.read()
        return found


@contextmanager
def terminal(url: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    shown = Terminal(None, master, slave, modes=termios.tcgetattr(slave))  # type: ignore[arg-type]
    shown.resize(24, 100)
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    program = (
        "import signal, sys; from aibridge_addon.cli import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "live", "--refresh", "0.1", "--database", url],
        cwd=ROOT,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment | {"TERM": "xterm-256color"},
        start_new_session=True,
    ) as shown.process:
        try:
            yield shown
        finally:
            shown.process.kill()
            os.close(master)
            os.close(slave)


@pytest.fixture
def place(tmp_path: Path) -> SqliteDatabase:
    found = SqliteDatabase(tmp_path / "aibridge.db")
    fill(found, datetime.now(UTC))
    return found


@pytest.mark.parametrize("way", ["q", "Ctrl-C", "SIGTERM"])
def test_the_terminal_is_restored(place: SqliteDatabase, way: str) -> None:
    with terminal(place.url) as shown:
        shown.until(ENTER)
        shown.until(b"In flight: 1")
        assert termios.tcgetattr(shown.slave) != shown.modes
        if way == "q":
            os.write(shown.master, b"q")
        else:
            shown.process.send_signal(signal.SIGINT if way == "Ctrl-C" else signal.SIGTERM)
        assert shown.ended() == (0 if way != "SIGTERM" else 128 + signal.SIGTERM)
        assert LEAVE in shown.out and b"Traceback" not in shown.out
        assert termios.tcgetattr(shown.slave) == shown.modes


def test_a_pause_restores_the_terminal_and_the_screen_comes_back(place: SqliteDatabase) -> None:
    with terminal(place.url) as shown:
        shown.until(ENTER)
        shown.until(b"In flight: 1")
        for _ in range(2):
            shown.process.send_signal(signal.SIGTSTP)
            shown.until(LEAVE)
            poll_until(lambda: os.waitpid(shown.process.pid, os.WUNTRACED | os.WNOHANG)[0], 60.0, what="a pause")
            assert termios.tcgetattr(shown.slave) == shown.modes
            shown.process.send_signal(signal.SIGCONT)
            shown.until(ENTER)
            shown.until(b"In flight: 1")
            assert termios.tcgetattr(shown.slave) != shown.modes
        os.write(shown.master, b"q")
        assert shown.ended() == 0
        assert termios.tcgetattr(shown.slave) == shown.modes


def test_a_screen_goes_on_when_postgresql_is_back(postgres: PostgresDatabase) -> None:
    fill(postgres, datetime.now(UTC))
    with terminal(postgres.url) as shown:
        shown.until(b"In flight: 1")
        postgres.server.stop()
        try:
            shown.until(b"No database since")
            shown.until(b"What follows was read at")
            shown.until(b"In flight: 1")  # the last snapshot is still there
        finally:
            postgres.server.start()
        shown.until(b"aibridge live")
        poll_until(lambda: _is_back(shown), 60.0, what="a screen without a problem")
        os.write(shown.master, b"q")
        assert shown.ended() == 0


def _is_back(shown: Terminal) -> bool:
    """Whether the last whole screen reports no problem."""
    shown.read()
    *screens, _ = shown.out.split(b"aibridge live")
    return bool(screens) and b"In flight: 1" in screens[-1] and b"No database since" not in screens[-1]


def test_a_database_that_hangs_keeps_no_key_waiting(postgres: PostgresDatabase) -> None:
    fill(postgres, datetime.now(UTC))
    with terminal(postgres.url) as shown:
        shown.until(b"In flight: 1")
        with postgres.server.hanging():
            os.write(shown.master, b"q")
            assert shown.ended() == 0
        assert LEAVE in shown.out


def test_a_screen_follows_the_size_and_a_database_that_goes_away_and_returns(place: SqliteDatabase) -> None:
    with terminal(place.url) as shown:
        shown.until(b"In flight: 1")
        assert b"First byte" not in shown.out
        shown.resize(30, 160)
        shown.until(b"First byte")
        hidden = place.path.rename(place.path.with_suffix(".away"))
        shown.until(b"No database since")
        shown.until(b"What follows was read at")
        hidden.rename(place.path)
        shown.until(b"Today  1 requests")
        os.write(shown.master, b"q")
        assert shown.ended() == 0
