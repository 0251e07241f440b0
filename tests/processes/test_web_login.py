"""The login form of `aibridge web` in a real Chromium, which sends headers that a test client does not."""

from __future__ import annotations

from pathlib import Path

from tests.processes.test_web import web
from tests.support.browser import Browser
from tests.support.databases import SqliteDatabase, write

TOKEN = "0123456789abcdef-token"


def test_a_browser_logs_in_with_the_form(tmp_path: Path) -> None:
    """Under the policy `no-referrer`, a browser sends `Origin: null` with the form, which is refused."""
    write(SqliteDatabase(tmp_path / "aibridge.db"))
    with web(tmp_path, env={"AIBRIDGE_WEB_TOKEN": TOKEN}) as running, Browser.running(tmp_path / "profile") as browser:
        browser.open(running.url + "/login")
        browser.evaluate(f"document.querySelector('[name=token]').value = '{TOKEN}'; void 0")
        browser.evaluate("setTimeout(() => document.querySelector('form').requestSubmit()); void 0")
        browser.wait_for("location.pathname === '/' && document.getElementById('live')?.textContent === 'live'")
        assert browser.evaluate("document.cookie") == ""
        assert browser.complaints == []
