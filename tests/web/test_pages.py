"""Every page over a record of which all numbers are known, with both databases, and over hostile texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any, Self

import pytest
from starlette.testclient import TestClient

from aibridge_addon.recording.queries import NO_PARAMETERS
from aibridge_addon.records import Record
from aibridge_addon.web import texts
from aibridge_addon.web.app import application
from aibridge_addon.web.pages import TURNS
from tests.support import team
from tests.support.databases import Database, SqliteDatabase, write
from tests.support.examples import ENDED, PROMPT, STARTED, uid
from tests.support.reading import NOON
from tests.web.conftest import LOCAL, source_of

PAGES = ("/", "/sessions", f"/session?id={team.SESSION}", "/tools", "/providers", "/budgets", "/unpriced")
BUDGET = {
    "name": "month",
    "per": "all",
    "subject": None,
    "period": "month",
    "spent": 36.5,
    "limit": 40.0,
    "unit": "usd",
    "used": 0.9125,
    "over": "refuse",
    "resets_at": "2026-02-01T00:00:00+00:00",
}


class Words(HTMLParser):
    """The text of a page in words, without that of plots, and the names of its elements and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self._in_plot = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self._in_plot |= tag == "svg"
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        self._in_plot &= tag != "svg"

    def handle_data(self, data: str) -> None:
        if not self._in_plot:
            self.words += data.split()


def text_of(pages: TestClient, path: str) -> str:
    answer = pages.get(path)
    assert answer.status_code == 200, answer.text
    return " ".join(Words(answer.text).words)


def test_the_overview_sums_up_the_period(pages: TestClient) -> None:
    text = text_of(pages, "/")
    # 30 days of 4 requests; three of four have a cost of 0.25, and a third of them pays by a subscription.
    assert "Cost, API $15.15" in text
    assert "Cost, subscription $7.50" in text
    assert "Requests 123 30 failed" in text
    assert "Without a price 30" in text
    assert "overloaded_error (529) 30" in text
    assert "Duration, median 6.0 s" in text
    assert "claude-opus-4-5 7.65 43" in text
    assert "grace 7.50 40" in text
    assert "Codex 7.50 40" in text


def test_a_period_is_that_many_days_with_today(pages: TestClient) -> None:
    assert "Requests 7 1 failed" in text_of(pages, "/?days=1")
    assert "Requests 31 7 failed" in text_of(pages, "/?days=7")
    assert "Requests 123 30 failed" in text_of(pages, "/?days=365")


@pytest.mark.parametrize("value", ["-1", "0", "8", "x", "9" * 400, "²", "30&days=7"])
def test_a_period_that_is_not_offered_is_the_usual_one(pages: TestClient, value: str) -> None:
    assert pages.get(f"/?days={value}").status_code == 200


def test_sessions_are_listed_the_newest_first_and_found_by_words(pages: TestClient) -> None:
    everything = text_of(pages, "/sessions")
    assert everything.index("Day 29") < everything.index("Day 28")
    found = text_of(pages, "/sessions?search=BUILD+fail")
    assert "Why does the build fail?" in found and "Day 29" not in found
    assert "No sessions." in text_of(pages, "/sessions?search=no+such+word")
    assert "grace" not in text_of(pages, "/sessions?actor=ad*")


def test_sessions_go_on_with_a_next_page(pages: TestClient) -> None:
    first, second = text_of(pages, "/sessions"), text_of(pages, "/sessions?page=2")
    assert "Older" in first and "Newer" in second
    assert "Day 29" in first and "Day 29" not in second


def test_a_session_is_a_conversation(pages: TestClient) -> None:
    html = pages.get(f"/session?id={team.SESSION}").text
    text = " ".join(Words(html).words)
    parts = [
        "Prompt Why does the build fail?",
        "Thought The log should say",
        "Call search_issues injected, tracker · 340 ms",
        "Result 2 issues",
        "Call Task",
        "2,100 new, 61,000 cache read, 3,000 cache write, 310 output · USD 0.0931",
        "subagent completed",
        "The step `test` fails",
        "The parser reads past the end",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert len(re.findall(r'<li class="turn d0">', html)) == 2
    assert len(re.findall(r'<li class="turn d1">', html)) == 1
    assert "client tools: 41,000 bytes" in text


def long_session() -> Iterator[Record]:
    """A subagent that begins on the first page, and goes on on the second one."""
    for number in range(TURNS + 3):
        id, at = uid(f"long-{number:03}"), NOON - timedelta(minutes=TURNS + 3 - number)
        subagent = number in (1, TURNS + 1)
        yield replace(
            STARTED,
            id=id,
            client_session_id="long",
            started_at=at,
            agent_id="sub" if subagent else None,
            request_class="subagent" if subagent else "prompt",
            metadata={"parent_agent_id": "main"} if subagent else {},
        )
        yield replace(PROMPT, interception_id=id, prompt=f"Prompt {number}.", created_at=at)
        yield replace(ENDED, interception_id=id, ended_at=at)


def test_a_page_of_a_session_reads_its_own_texts_only(database: Database) -> None:
    write(database, *long_session())
    asked: list[int] = []
    source = source_of(database)

    class Counting:
        """Queries that count the rows of prompts."""

        def __init__(self) -> None:
            self._queries = source.open()
            self.postgres = self._queries.postgres

        def __enter__(self) -> Self:
            self._queries.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._queries.__exit__(*error)

        def select(self, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS) -> Iterator[dict[str, Any]]:
            found = list(self._queries.select(sql, parameters))
            asked.extend([len(found)] if "from aibridge_user_prompts" in sql else [])
            return iter(found)

        def stream(self, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS) -> Iterator[dict[str, Any]]:
            return self._queries.stream(sql, parameters)

    pages = TestClient(application(replace(source, open=Counting), token=None), base_url=LOCAL)
    html = pages.get("/session?id=long&page=2").text
    assert re.findall(r"Prompt \d+\.", html) == [f"Prompt {number}." for number in range(TURNS, TURNS + 3)]
    assert re.findall(r'<li class="turn d(\d)">', html) == ["0", "1", "0"]
    assert "Earlier" in html and "Later" not in html
    assert asked == [3]
    first = pages.get("/session?id=long").text
    assert len(re.findall(r"Prompt \d+\.", first)) == TURNS and "Later" in first


@pytest.mark.parametrize("words", ["CLAUDE code", "/src/par", "build FAIL", "b2b0a1c4"])
def test_a_search_finds_clients_projects_prompts_and_ids(pages: TestClient, words: str) -> None:
    assert "Why does the build fail?" in text_of(pages, f"/sessions?search={words}&actor=ada")


def test_a_session_is_found_by_the_beginning_of_its_id(pages: TestClient) -> None:
    assert "Why does the build fail?" in text_of(pages, "/session?id=b2b0")


@pytest.mark.parametrize("path", ["/session", "/session?id=nothing", "/session?id=session-"])
def test_a_session_that_is_not_there_is_a_page_that_says_so(pages: TestClient, path: str) -> None:
    answer = pages.get(path)
    assert answer.status_code == 404
    assert "Not found" in answer.text


def test_tools_are_listed_with_their_calls(pages: TestClient) -> None:
    text = text_of(pages, "/tools")
    assert "search_issues tracker injected 1 0 340 ms" in text
    assert "Task – 1 0 –" in text
    assert "tracker 1,625 3" in text  # a quarter of the bytes, in three requests


def test_limits_are_shown_beside_the_providers(pages: TestClient) -> None:
    text = text_of(pages, "/providers")
    assert "anthropic 15.15 83 20" in text
    assert "anthropic 7d sk-a...0001 ada 91%" in text


def test_budgets_are_shown_with_what_is_used(database: Database) -> None:
    write(database, *team.session(NOON))
    pages = TestClient(application(source_of(database, [BUDGET]), token=None), base_url=LOCAL)
    assert "month – month 36.50 40.00 USD 91% refuse 2026-02-01" in text_of(pages, "/budgets")


def test_usage_without_a_price_is_listed_with_its_reason(pages: TestClient) -> None:
    text = text_of(pages, "/unpriced")
    assert "claude-opus-4-5 vendor: unknown anthropic api.example 10" in text
    assert "What to do vendor : set providers[].price_as" in text


def test_a_page_that_is_not_there_has_the_navigation(pages: TestClient) -> None:
    answer = pages.get("/nowhere")
    assert answer.status_code == 404 and "There is no such page." in answer.text and 'href="/sessions"' in answer.text


@pytest.mark.parametrize(("amount", "shown"), [(0.001, "<$0.01"), (0.0, "$0.00"), (1234.5, "$1,234.50"), (None, "n/a")])
def test_a_sign_stands_before_the_amount(amount: float | None, shown: str) -> None:
    assert texts.dollars(amount, 2) == shown


@pytest.mark.parametrize("path", PAGES)
def test_an_empty_record_is_no_error(database: Database, path: str) -> None:
    write(database)
    pages = TestClient(application(source_of(database), token=None), base_url=LOCAL)
    assert pages.get(path).status_code == (404 if "session?" in path else 200)


@pytest.mark.parametrize("path", PAGES)
def test_hostile_texts_stay_text(database: Database, path: str) -> None:
    plain = TestClient(application(source_of(database), token=None), base_url=LOCAL)
    write(database, *team.month(NOON), *team.session(NOON, team.HOSTILE + "x" * 1_000_000))
    page = Words(plain.get(path).text)
    assert page.elements.isdisjoint({"img", "iframe", "object", "style"})
    assert not any(name.startswith("on") or name == "style" for name in page.attributes)
    html = plain.get(path).text
    assert html.count("<script") == 1  # our own
    assert "\x1b" not in html and "\u202e" not in html
    assert len(html) < 200_000


def test_a_database_that_is_away_is_a_page_that_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    missing = SqliteDatabase(tmp_path_factory.mktemp("none") / "aibridge.db")
    pages = TestClient(application(source_of(missing), token=None), base_url=LOCAL)
    answer = pages.get("/")
    assert answer.status_code == 503
    assert "The database cannot be read" in answer.text
