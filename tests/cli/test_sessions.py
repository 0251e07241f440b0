"""`aibridge sessions`: the list of sessions, and one session as a timeline."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from aibridge_addon import cli
from aibridge_addon.records import Record
from tests.support.databases import Database, SqliteDatabase, write
from tests.support.examples import ANSWER, ENDED, PROMPT, STARTED, THOUGHT, TOKENS, TOOL, uid

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteDatabase:
    return SqliteDatabase(tmp_path / "aibridge.db")


def started(name: str, minutes: int = 0, **more: Any) -> Record:
    values = {"agent_id": None, "client_session_id": "s1"} | more
    return replace(STARTED, id=uid(name), started_at=AT + timedelta(minutes=minutes), **values)


def ended(name: str, minutes: int = 0, **more: Any) -> Record:
    values = {"status": "completed", "error_type": None, "error_message": None} | more
    return replace(ENDED, interception_id=uid(name), ended_at=AT + timedelta(minutes=minutes, seconds=2), **values)


def sessions(capsys: pytest.CaptureFixture[str], database: Database, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    zone = [] if "--timezone" in arguments else ["--timezone", "UTC"]
    code = cli.main(["sessions", *arguments, *zone, "--database", database.url])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def listed(capsys: pytest.CaptureFixture[str], database: Database, *arguments: str) -> list[str]:
    _, out, _ = sessions(capsys, database, "--json", *arguments)
    return [row["session_id"] for row in json.loads(out)["rows"]]


def test_the_newest_sessions_come_first(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (session, actor) in enumerate((("s1", "ada"), ("s2", "bob"), ("s1", "ada"), ("s3", "ada"))):
        write(database, started(f"i{number}", 60 * number, client_session_id=session, initiator_id=actor))
    assert listed(capsys, database) == ["s3", "s1", "s2"]
    assert listed(capsys, database, "--limit", "1") == ["s3"]
    assert listed(capsys, database, "--limit", "0") == ["s3", "s1", "s2"]
    assert listed(capsys, database, "--actor", "b*") == ["s2"]
    assert listed(capsys, database, "--model", "gpt*") == []
    assert listed(capsys, database, "--until", "2026-11-01T13:59") == ["s2", "s1"]
    assert listed(capsys, database, "--since", "2026-11-01T15:00") == ["s3"]


def test_a_session_has_all_of_its_usage(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = replace(TOKENS, interception_id=uid("i1"), cache_write_input_tokens=4, cost_usd=0.25)
    write(database, started("i1"), replace(PROMPT, interception_id=uid("i1"), prompt="fix\nit"), tokens, ended("i1"))
    write(database, started("i2", 5))
    code, out, err = sessions(capsys, database, "--json")
    (row,) = json.loads(out)["rows"]
    assert code == 0 and err.startswith("database: ")
    assert {name: row[name] for name in ("interceptions", "running", "output_tokens", "cost_usd", "prompt")} == {
        "interceptions": 2,
        "running": 1,
        "output_tokens": 2,
        "cost_usd": 0.25,
        "prompt": "fix\nit",
    }
    assert "fix it" in sessions(capsys, database)[1]
    assert sessions(capsys, database, "--csv")[1].splitlines()[0].split(",") == list(row)


@pytest.mark.parametrize(
    ("id", "found"),
    [
        ("abc-1", "abc-1"),
        ("abc", None),
        ("abc-2", "abc-2"),
        ("x", "x_%"),
        ("x_", "x_%"),
        ("ab%", None),
        ("nothing", None),
        (uid("i2"), "abc-22"),
        (uid("i2")[:4], "abc-22"),
    ],
)
def test_the_beginning_of_an_id_is_enough_if_it_is_unique(
    database: Database, capsys: pytest.CaptureFixture[str], id: str, found: str | None
) -> None:
    names = {"i1": "abc-1", "i2": "abc-22", "k3": "abc-2", "m4": "x_%"}
    for name, session in names.items():
        write(database, started(name, client_session_id=session))
    code, out, err = sessions(capsys, database, "show", id)
    if found is not None:
        assert (code, out.startswith(f"{found} · ada")) == (0, True)
        return
    assert (code, out) == (1, "")
    several = "is not unique: 'abc-1', 'abc-2', 'abc-22'. Write more of the id"
    assert (several if id == "abc" else "no session or interception has an id that begins with") in err


def test_of_users_with_the_same_session_id_one_can_be_shown(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, actor in enumerate(("ada", "bob")):
        write(database, started(f"i{number}", number, initiator_id=actor), ended(f"i{number}", number))
    _, both, _ = sessions(capsys, database, "show", "s1")
    assert "s1 · ada" in both and "s1 · bob" in both and "--actor NAME" in both
    _, one, _ = sessions(capsys, database, "show", "s1", "--actor", "b*")
    assert "bob" in one and "ada" not in one and "--actor" not in one
    code, _, err = sessions(capsys, database, "show", "s1", "--actor", "carol")
    assert (code, "no user of session s1 matches --actor" in err) == (1, True)


def test_a_timeline_has_everything_in_its_order(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    id = uid("i1")
    write(
        database,
        started("i1"),
        replace(PROMPT, interception_id=id, prompt="why does it fail?"),
        replace(THOUGHT, interception_id=id, sequence=1),
        replace(TOOL, id=uid("c1"), interception_id=id, sequence=2, injected=True, tool="get_time", server_name="time"),
        replace(TOOL, id=uid("c2"), interception_id=id, sequence=3, invocation_error=None, server_name=None),
        replace(ANSWER, interception_id=id, sequence=4, content="because of the clock", truncated=False),
        replace(TOKENS, interception_id=id, cache_write_input_tokens=4, cost_usd=0.25, kind="answer"),
        ended("i1", status="failed", error_type="overloaded_error", error_message="too much"),
    )
    out = sessions(capsys, database, "show", "s1")[1]
    order = (
        "12:00:00 claude-1 · failed · 2.0 s",
        "prompt   why does it fail?",
        "thought  let me see",
        "call     get_time [injected, time",
        "failed: boom",
        "call     Read",
        "answer   because of the clock",
        "tokens   input 1, cache read 3, cache write 4, output 2, USD 0.2500",
        "error    529 overloaded_error: too much",
    )
    places = [out.find(part) for part in order]
    assert -1 not in places and places == sorted(places)
    assert "2026-11-01 12:00:00 to 2026-11-01 12:00:02 (UTC), 1 request, 1 failed" in out
    (row,) = json.loads(sessions(capsys, database, "show", "s1", "--json")[1])["rows"]
    assert [
        len(row[name]) for name in ("user_prompts", "model_thoughts", "tool_usages", "answers", "token_usages")
    ] == [*(1, 1, 2, 1, 1)]
    assert row["tool_usages"][0]["metadata"] == {"server_side": True}


def test_subagents_are_indented_below_the_agent_that_started_them(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    child = {"request_class": "subagent", "agent_id": "a1", "metadata": {"parent_agent_id": "s1"}, "model": "m-child"}
    grandchild = child | {"agent_id": "a2", "metadata": {"parent_agent_id": "a1"}, "model": "m-grandchild"}
    write(sqlite, started("i1", model="m-main"), started("i2", 1, **child), started("i3", 2, **grandchild))
    write(sqlite, started("i4", 3, **(child | {"request_class": "tool_result"})), started("i5", 4, model="m-main"))
    lines = [line for line in sessions(capsys, sqlite, "show", "s1")[1].splitlines() if " m-" in line]
    assert [(len(line) - len(line.lstrip()), line.split()[1]) for line in lines] == [
        *((0, "m-main"), (4, "m-child"), (8, "m-grandchild"), (4, "m-child"), (0, "m-main"))
    ]


def test_long_texts_are_shortened_unless_they_are_wanted_in_full(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "first line\n" + "word " * 1_000 + "end"
    write(sqlite, started("i1"), replace(PROMPT, interception_id=uid("i1"), prompt=text), ended("i1"))
    short = sessions(capsys, sqlite, "show", "s1")[1]
    assert "first line word" in short and "characters)" in short and len(short) < 1_000
    full = sessions(capsys, sqlite, "show", "s1", "--full")[1]
    assert full.split().count("word") == 1_000
    assert max(map(cell_len, full.splitlines())) <= 80


@pytest.mark.parametrize("options", [(), ("--full",), ("--json",)], ids=["short", "full", "json"])
def test_no_text_controls_the_terminal(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    evil = "a\x7f\x1b]0;title\x07b\r\x9b2J\u202e[red]c\x00 \x1b[2K" + "x" * 300
    id = uid("i1")
    call = replace(TOOL, interception_id=id, tool=evil, result=evil, invocation_error=evil, input={"k": evil})
    texts: list[Record] = [
        replace(ANSWER, interception_id=id, content=evil),
        replace(THOUGHT, interception_id=id, content=evil),
    ]
    begun = started("i1", client_session_id=f"s{evil[:20]}", initiator_id=evil, project=evil, model=evil)
    write(
        sqlite, begun, replace(PROMPT, interception_id=id, prompt=evil), call, *texts, ended("i1", error_message=evil)
    )
    for arguments in (("show", "sa", *options), options if options != ("--full",) else ()):
        out = sessions(capsys, sqlite, *arguments)[1]
        assert not set(out) & set("\x1b\x07\r\x7f\x9b\u202e\x00")
    _, out, err = sessions(capsys, sqlite, "show", "no\x1b[2J")
    assert "\x1b" not in out + err


def test_what_was_not_recorded_is_said(sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    write(sqlite, started("i1"), replace(PROMPT, interception_id=uid("i1"), prompt=None))
    out = sessions(capsys, sqlite, "show", "s1")[1]
    assert "prompt   (not recorded)" in out
    assert "running" in out


def test_an_empty_database_has_no_sessions(sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    write(sqlite)
    code, out, _ = sessions(capsys, sqlite)
    assert (code, "There are no sessions" in out) == (0, True)
    assert listed(capsys, sqlite) == []
    assert sessions(capsys, sqlite, "show", "s1")[0] == 1


@pytest.mark.parametrize(
    "arguments", [("show",), ("list",), ("--limit", "-1"), ("--limit", "x"), ("show", "s1", "--csv")]
)
def test_wrong_use_ends_with_code_2(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended_with:
        sessions(capsys, sqlite, *arguments)
    assert ended_with.value.code == 2


@pytest.mark.parametrize("width", [80, 160])
def test_the_list_fits_the_terminal(
    sqlite: SqliteDatabase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for number in range(15):
        id = uid(f"i{number}")
        tokens = replace(TOKENS, id=uid(f"t{number}"), interception_id=id, cost_usd=10.0**number)
        begun = started(f"i{number}", number, client_session_id=f"{number}-" + "s" * 60, initiator_id="u" * 60)
        prompt = replace(PROMPT, id=uid(f"p{number}"), interception_id=id, prompt="提示 " * 100)
        write(sqlite, begun, replace(tokens, cache_write_input_tokens=10**number), prompt, ended(f"i{number}"))
    assert max(map(cell_len, sessions(capsys, sqlite)[1].splitlines())) <= width
