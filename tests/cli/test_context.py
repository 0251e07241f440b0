"""Where the context went, in `sessions show` and `report tools`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon import cli
from aibridge_addon.cli.context import BAR_WIDTH, PARTS, bar, legend
from aibridge_addon.recording.context import CATEGORIES
from tests.support.databases import SqliteDatabase, write
from tests.support.examples import STARTED, TOOL, uid

CONTEXT = [("system", 100), ("our_tools", 1), ("history", 899)]


def test_every_category_has_a_part_of_its_own() -> None:
    assert tuple(PARTS) == CATEGORIES
    assert len({character for character, _, _ in PARTS.values()}) == len(PARTS)


@pytest.mark.parametrize("width", [1, 8, 20, 80])
def test_a_bar_has_its_width_and_a_character_for_each_category(width: int) -> None:
    parts = bar(CONTEXT, width)
    assert len("".join(text for text, _ in parts)) == max(min(width, BAR_WIDTH), 3)
    assert all(parts)


def test_parts_have_the_size_of_their_share() -> None:
    assert [len(text) for text, _ in bar(CONTEXT, 50)] == [5, 1, 44]
    assert legend(CONTEXT) == ["█ system prompt 10%", "▒ injected tools <1%", "░ history before the prompt 90%"]


def started(name: str, **metadata: Any) -> Any:
    return replace(STARTED, id=uid(name), client_session_id="s1", metadata=metadata)


@pytest.mark.parametrize("width", ["80", "160"])
def test_a_session_shows_the_context_of_its_last_request(
    width: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    database = SqliteDatabase(tmp_path / "aibridge.db")
    write(database, started("i1", context_bytes={"system": 1}), started("i2", context_bytes=dict(CONTEXT)))
    assert cli.main(["sessions", "show", "s1", "--database", database.url]) == 0
    text = capsys.readouterr().out
    assert "Context of the last request, 1,000 bytes:" in text
    assert "█" * 6 + "▒" + "░" * 53 in text.splitlines()
    assert "░ history before the prompt 90%" in text


def test_the_report_of_tools_shows_what_schemas_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = SqliteDatabase(tmp_path / "aibridge.db")
    write(database, started("i1", schema_bytes={"\x1b[31mfiles": 4000}))
    place = ["--database", database.url]
    assert cli.main(["report", "tools", *place]) == 0
    assert "files: about 1,000 tokens (4,000 bytes)" in (text := capsys.readouterr().out) and "\x1b" not in text
    write(database, replace(TOOL, interception_id=uid("i1")))
    assert cli.main(["report", "tools", *place]) == 0
    assert "files: about 1,000 tokens (4,000 bytes)" in capsys.readouterr().out
    assert cli.main(["report", "tools", "--json", *place]) == 0
    [schema] = json.loads(capsys.readouterr().out)["schemas"]
    assert (schema["schema_bytes"], schema["schema_tokens"], schema["requests"]) == (4000, 1000, 1)
