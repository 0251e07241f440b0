"""Who may see the pages: the table of hosts, origins and tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient, Response
from starlette.applications import Starlette
from starlette.testclient import TestClient

from aibridge_addon.web import guard
from aibridge_addon.web.app import application
from aibridge_addon.web.guard import DELAY, MAX_WAITING, is_loopback
from tests.support import team
from tests.support.databases import SqliteDatabase, write
from tests.support.reading import NOON
from tests.web.conftest import LOCAL, source_of

TOKEN = "correct-horse-battery-staple"
HTML = {"accept": "text/html"}


@pytest.fixture
def database(tmp_path: Path) -> SqliteDatabase:
    made = SqliteDatabase(tmp_path / "aibridge.db")
    write(made, *team.session(NOON))
    return made


def open_pages(database: SqliteDatabase, token: str | None = None, base_url: str = LOCAL) -> TestClient:
    async def no_wait(seconds: float) -> None:
        pass

    application_ = application(source_of(database), token=token, wait=no_wait)
    return TestClient(application_, base_url=base_url, follow_redirects=False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:9470"}, 200),
        ({"host": "[::1]:9470"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "evil.example:9470"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": "192.168.1.5:9470"}, 421),
        ({"host": ""}, 421),
        ({"host": "[::1"}, 421),
        ({"origin": LOCAL}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8080"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403),
    ],
)
def test_a_page_of_another_site_gets_nothing(database: SqliteDatabase, headers: dict[str, str], status: int) -> None:
    answer = open_pages(database).get("/", headers=headers)
    assert answer.status_code == status
    assert ("Overview" in answer.text) is (status == 200)


@pytest.mark.parametrize("path", ["/", "/sessions", "/static/style.css", "/nothing", "/login"])
def test_every_answer_forbids_foreign_scripts_and_frames(database: SqliteDatabase, path: str) -> None:
    headers = open_pages(database).get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", "/sessions", f"/session?id={team.SESSION}", "/events", "/nothing"])
def test_without_the_token_there_is_only_the_form_for_it(database: SqliteDatabase, path: str) -> None:
    pages = open_pages(database, TOKEN, "http://bridge.example:9470")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": f"aibridge_web={TOKEN}"}):
        assert pages.get(path, headers=headers).status_code == 401
    redirected = pages.get(path, headers=HTML)
    assert (redirected.status_code, redirected.headers["location"]) == (303, "/login")


def test_the_form_gives_a_cookie_that_does_not_show_the_token(database: SqliteDatabase) -> None:
    pages = open_pages(database, TOKEN, "http://bridge.example:9470")
    answer = pages.post("/login", data={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert pages.get("/", headers=HTML).status_code == 200


@pytest.mark.parametrize(
    "data", [{"token": "wrong"}, {}, {"token": "é" * 20}, {"token": "\ud800".encode("utf-8", "surrogatepass")}]
)
def test_a_wrong_token_leads_back_to_the_form(database: SqliteDatabase, data: dict[str, str]) -> None:
    pages = open_pages(database, TOKEN, "http://bridge.example:9470")
    answer = pages.post("/login", data=data)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?wrong=1")
    assert "This token is wrong." in pages.get("/login?wrong=1").text


def asked(app: Starlette, given: str) -> Awaitable[Response]:
    async def ask() -> Response:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://bridge.example:9470") as client:
            return await client.post("/login", data={"token": given})

    return ask()


def test_wrong_tokens_wait_and_only_so_many_at_a_time_are_compared(database: SqliteDatabase) -> None:
    async def run() -> None:
        release, waits = asyncio.Event(), asyncio.Semaphore(0)

        async def wait(seconds: float) -> None:
            assert seconds == DELAY
            waits.release()
            await release.wait()

        app = application(source_of(database), token=TOKEN, wait=wait)
        waiting = [asyncio.ensure_future(asked(app, f"wrong {number}")) for number in range(MAX_WAITING)]
        for _ in waiting:
            await waits.acquire()
        refused = await asked(app, TOKEN)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert not any(answer.done() for answer in waiting)
        release.set()
        assert {(await answer).headers["location"] for answer in waiting} == {"/login?wrong=1"}
        assert (await asked(app, TOKEN)).headers["location"] == "/"

    asyncio.run(run())


def test_a_cookie_is_good_while_others_try_tokens(database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = open_pages(database, TOKEN, "http://bridge.example:9470")
    pages.post("/login", data={"token": TOKEN})
    monkeypatch.setattr(guard, "MAX_WAITING", 0)
    assert pages.post("/login", data={"token": TOKEN}).status_code == 429
    assert pages.get("/", headers={"authorization": f"Bearer {TOKEN}", "cookie": ""}).status_code == 429
    assert pages.get("/", headers=HTML).status_code == 200


def test_wrong_tokens_of_an_address_are_logged_once(database: SqliteDatabase, caplog: pytest.LogCaptureFixture) -> None:
    pages = open_pages(database, TOKEN, "http://bridge.example:9470")
    for _ in range(3):
        pages.post("/login", data={"token": "a secret typed wrong"})
        pages.get("/", headers={"authorization": "Bearer a secret typed wrong"})
    [line] = [record.getMessage() for record in caplog.records if record.name == guard.__name__]
    assert line == "aibridge web: a wrong token from testclient; further ones from there are not logged"


def test_a_form_has_a_bound(database: SqliteDatabase) -> None:
    pages = open_pages(database, TOKEN, "http://bridge.example:9470")
    assert pages.post("/login", data={"token": "x" * 10_000}).status_code == 413


def test_programs_send_the_token_in_a_header(database: SqliteDatabase) -> None:
    pages = open_pages(database, TOKEN, "http://bridge.example:9470")
    assert pages.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/sessions", "/static/style.css"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_pages_can_only_be_read(database: SqliteDatabase, path: str, method: str) -> None:
    assert open_pages(database).request(method, path).status_code == 405


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/"])
def test_no_other_file_is_served(database: SqliteDatabase, path: str) -> None:
    assert open_pages(database).get(path).status_code == 404


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "localhost."])
def test_these_are_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "bridge.example", "", "localhost.example"])
def test_these_are_not_this_machine_alone(host: str) -> None:
    assert not is_loopback(host)


def test_the_form_says_nothing_of_the_database(database: SqliteDatabase) -> None:
    pages = open_pages(database, TOKEN, "http://bridge.example:9470")
    html = pages.get("/login").text
    assert str(database.path.parent) not in html and "Overview" not in html
    assert str(database.path.parent) in pages.get("/", headers={"authorization": f"Bearer {TOKEN}"}).text
