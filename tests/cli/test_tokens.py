"""`aibridge tokens`: what it prints, and what a bridge then finds in the database."""

from __future__ import annotations

import csv
import json
import re
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pytest

from aibridge_addon import cli
from aibridge_addon.credentials.tokens import is_well_formed, presented
from tests.support.databases import Database, write

Outcome = tuple[int, str, str]


class Command:
    def __init__(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = database.url
        self._capsys = capsys

    def __call__(self, action: str, *arguments: str) -> Outcome:
        code = cli.main(["tokens", action, *arguments, "--database", self._url])
        return code, *self._capsys.readouterr()

    def json(self, action: str, *arguments: str) -> Any:
        code, out, _ = self(action, *arguments, "--json")
        assert code == 0
        return json.loads(out)


@pytest.fixture
def tokens(database: Database, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(database, capsys)


def test_a_token_is_printed_alone_and_found_by_a_bridge(tokens: Command, database: Database) -> None:
    code, out, err = tokens("create", "--actor", "alice", "--group", "team", "--group", "ops", "--expires", "90d")
    token = out.removesuffix("\n")
    assert code == 0 and is_well_formed(token)
    assert token not in err
    with closing(database.tokens()) as store:
        [grant] = store.find([presented(token).digest]).values()
    assert (grant.actor, grant.groups, grant.revoked_at) == ("alice", ("team", "ops"), None)
    assert grant.id in err and re.search(r"expires \d{4}-\d\d-\d\d \d\d:\d\d UTC\.", err) and "TOKEN@HOST" in err


def test_a_list_has_all_tokens_and_no_secret(tokens: Command) -> None:
    first = tokens.json("create", "--actor", "alice", "--group", "team", "--note", "laptop", "--expires", "36h")
    second = tokens.json("create", "--actor", "bob")
    life = datetime.fromisoformat(first["expires_at"]) - datetime.fromisoformat(first["created_at"])
    assert life == timedelta(hours=36)
    listed = tokens.json("list")
    expected = [
        {name: value for name, value in row.items() if name != "token"} | {"revoked_at": None, "last_used_at": None}
        for row in (first, second)
    ]
    assert listed["rows"] == expected and listed["totals"] == {"tokens": 2}
    _, out, _ = tokens("list")
    [one, other] = out.splitlines()
    assert first["id"] in one and "alice" in one and "groups=team" in one and "laptop" in one
    assert second["id"] in other and "never expires" in other and "never used" in other
    for row in (first, second):
        assert row["token"] not in out + json.dumps(listed)


def test_a_list_is_also_csv(tokens: Command) -> None:
    made = tokens.json("create", "--actor", "=alice", "--group", "team", "--group", "ops")
    [row] = csv.DictReader(tokens("list", "--csv")[1].splitlines())
    assert list(row) == list(tokens.json("list")["rows"][0])
    assert (row["id"], row["actor"], row["groups"], row["note"]) == (made["id"], "'=alice", "team,ops", "")


def test_an_empty_list_says_so(tokens: Command, database: Database) -> None:
    write(database)
    assert tokens("list")[1].startswith("There are no tokens.")
    assert tokens.json("list")["rows"] == []
    assert len(tokens("list", "--csv")[1].splitlines()) == 1


def test_a_revoked_token_stays_in_the_list(tokens: Command) -> None:
    made = tokens.json("create", "--actor", "alice")
    revoked = tokens.json("revoke", made["id"])
    assert revoked["id"] == made["id"]
    assert tokens.json("revoke", made["id"]) == revoked
    assert tokens.json("list")["rows"][0]["revoked_at"] == revoked["revoked_at"]
    assert "revoked 2" in tokens("list")[1]


def test_an_unknown_id_cannot_be_revoked(tokens: Command) -> None:
    tokens("create", "--actor", "alice")
    code, out, err = tokens("revoke", "nonsense")
    assert (code, out) == (1, "")
    assert "there is no token with the id nonsense" in err


def test_a_list_of_a_database_that_is_missing_fails(tokens: Command) -> None:
    code, out, err = tokens("list")
    assert (code, out) == (1, "") and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--actor", ""],
        ["--actor", "a\nb"],
        ["--actor", "a" * 257],
        ["--actor", "a", "--group", " "],
        ["--actor", "a", "--note", "\x1b[2J"],
        *(["--actor", "a", "--expires", text] for text in ("90", "0d", "-1d", "36501d", "1y", "soon")),
        [],
    ],
)
def test_wrong_use_makes_no_token(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["tokens", "create", *arguments, "--database", "sqlite:////nowhere/never.db"])
    assert raised.value.code == 2
    assert "aib_" not in capsys.readouterr().out
