"""`aibridge web` as a process, seen with a real Chromium."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from aibridge_addon.records import utc_now
from tests.support import team
from tests.support.browser import Browser
from tests.support.databases import Database, SqliteDatabase, opened, write
from tests.support.examples import STARTED, uid
from tests.support.polling import poll_until

AIBRIDGE = Path(sys.executable).parent / "aibridge"
PAGES = ("/", "/sessions", f"/session?id={team.SESSION}", "/tools", "/providers", "/budgets", "/unpriced")


class Web:
    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url


@contextmanager
def web(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Web]:
    """Run the command in a folder, until the block ends."""
    command = [str(AIBRIDGE), "web", "--listen", "127.0.0.1:0", "--timezone", "UTC", *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIBRIDGE")}
    log = folder / "web.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, stderr=file, stdout=file, text=True, env=kept | (env or {}))
    try:
        found = poll_until(lambda: re.search(r"pages: (\S+)/ ", log.read_text()), 60, what="the address")
        yield Web(process, found[1])
    finally:
        process.kill()
        process.wait(60)


def fill(database: Database) -> None:
    now = utc_now()
    write(database, *team.month(now), *team.session(now, team.HOSTILE))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser.running(tmp_path_factory.mktemp("chromium") / "profile") as running:
        yield running


def test_each_page_works_in_a_browser_and_fits_a_small_one(
    database: Database, tmp_path: Path, browser: Browser
) -> None:
    fill(database)
    with web(tmp_path, "--database", database.url) as running:
        for path in PAGES:
            for width in (1280, 400):
                browser.open(running.url + path, width=width)
                assert browser.evaluate("document.title").endswith("– AI Bridge"), path
                assert browser.evaluate("document.documentElement.scrollWidth") <= width, path
            browser.wait_for("document.getElementById('live').textContent === 'live'")
            assert browser.complaints == [], path


def test_a_page_is_renewed_when_a_request_begins(tmp_path: Path, browser: Browser) -> None:
    database = SqliteDatabase(tmp_path / "aibridge.db")
    write(database, *team.session(utc_now()))
    with web(tmp_path) as running:
        browser.open(running.url + "/")
        browser.wait_for("document.getElementById('live').textContent === 'live'")
        with opened(database) as store:
            store.write([replace(STARTED, id=uid("new"), started_at=utc_now() + timedelta(seconds=1))])
            browser.wait_for("/Running now\\s*1/.test(document.body.textContent)")


def test_the_keyboard_reaches_the_content_and_every_page(tmp_path: Path, browser: Browser) -> None:
    fill(SqliteDatabase(tmp_path / "aibridge.db"))
    with web(tmp_path) as running:
        browser.open(running.url + "/")
        reached = []
        for _ in range(7):
            browser.press("Tab")
            reached.append(browser.evaluate("document.activeElement.textContent"))
        assert reached == ["To the content", "Overview", "Sessions", "Tools", "Providers", "Budgets", "Unpriced"]
        browser.press("Enter")
        browser.wait_for("location.pathname === '/unpriced'")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_although_a_page_is_open(tmp_path: Path, number: signal.Signals) -> None:
    fill(SqliteDatabase(tmp_path / "aibridge.db"))
    with web(tmp_path) as running, urlopen(running.url + "/events", timeout=60) as stream:
        assert stream.readline() == b"retry: 5000\n"
        running.process.send_signal(number)
        assert running.process.wait(60) in (0, -number, 128 + number)


def test_others_need_the_token(tmp_path: Path) -> None:
    fill(SqliteDatabase(tmp_path / "aibridge.db"))
    token = "0123456789abcdef-token"
    with web(tmp_path, env={"AIBRIDGE_WEB_TOKEN": token}) as running:
        asked = Request(running.url + "/", headers={"authorization": f"Bearer {token}"})
        with urlopen(asked, timeout=60) as answer:
            assert b"Overview" in answer.read()
        with urlopen(running.url + "/login", timeout=60) as answer:
            assert b"Log in" in answer.read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "0.0.0.0:0"], "an address of this machine alone, or --token"),
        (["--listen", "9470"], "HOST:PORT, such as 127.0.0.1:9470"),
        (["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["--token", "short"], "at least 16"),
        (["--timezone", "Nowhere"], "the name of a time zone"),
        (["--database", "sqlite:///missing.db"], "missing.db"),
    ],
)
def test_wrong_use_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    fill(SqliteDatabase(tmp_path / "aibridge.db"))
    ended = subprocess.run([str(AIBRIDGE), "web", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == (1 if "missing.db" in message else 2)
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_in_use_is_said(tmp_path: Path) -> None:
    fill(SqliteDatabase(tmp_path / "aibridge.db"))
    with web(tmp_path) as running:
        command = [str(AIBRIDGE), "web", "--listen", running.url.removeprefix("http://")]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2
        assert "a free address" in ended.stderr
