"""A bridge's part of logins, without the bridge: servers, pages and a person with a browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, closing
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from aibridge_addon.config.schema import Egress, HttpServer
from aibridge_addon.recording.mcp_logins import McpLogins
from aibridge_addon.records import utc_now
from aibridge_addon.records.pages import PageAnswer, PageRequest
from aibridge_addon.tools import CallError
from aibridge_addon.tools.caller import Caller
from aibridge_addon.tools.oauth.logins import Logins
from aibridge_addon.tools.oauth.pages import LoginPages
from aibridge_addon.tools.oauth.sealing import Sealer
from aibridge_addon.tools.oauth.tokens import Tokens
from tests.support.databases import Database, opened
from tests.support.oauth_server import KEY, OAuthMcp
from tests.tools.conftest import WITHIN, Stage

BASE = "http://127.0.0.1:9464"
LINK = f"{BASE}/mcp/login/ours?ticket=aib_login_"


class Clock:
    """A time of day that the test moves."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.ahead

    def seconds(self) -> float:
        """The same as a monotonic clock."""
        return self().timestamp()


class Person:
    """A browser, which follows redirects to the login pages and away from them, and keeps cookies."""

    def __init__(self, pages: LoginPages) -> None:
        self._pages = pages
        self.cookies: dict[str, str] = {}
        self.visited: list[str] = []
        self.ends_at = ""
        """Where the browser stops: what begins with this is not opened."""

    async def open(self, url: str) -> PageAnswer:
        """Return the first page that is no redirect."""
        for _ in range(20):
            self.visited.append(url)
            if self.ends_at and url.startswith(self.ends_at):
                return PageAnswer(0, {}, url.encode())
            answer = await (self._login_page(url) if url.startswith(BASE) else _foreign(url))
            if not 300 <= answer.status < 400:
                return answer
            url = answer.headers["Location"]
        raise AssertionError("the browser is sent around for ever")

    async def _login_page(self, url: str) -> PageAnswer:
        parts = urlsplit(url)
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = await self._pages.answer(PageRequest("GET", parts.path, parts.query, cookie))
        if (given := answer.headers.get("Set-Cookie")) is not None:
            name, _, value = given.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer


async def _foreign(url: str) -> PageAnswer:
    async with httpx.AsyncClient(trust_env=False, timeout=WITHIN) as client:
        response = await client.get(url)
    headers = {"Location": response.headers["location"]} if "location" in response.headers else {}
    return PageAnswer(response.status_code, headers, response.content)


class Process:
    """What one process has: servers, logins and pages over the shared database."""

    def __init__(self, database: Database, settings: dict[str, HttpServer], **options: Any) -> None:
        self.clock: Clock = options.pop("clock", None) or Clock()
        keys, base = options.pop("keys", (KEY,)), options.pop("base", BASE)
        egress = options.pop("egress", Egress())
        self.database = McpLogins(database.mcp_logins())
        sealer = Sealer([SecretStr(key) for key in keys])
        tokens = Tokens(self.database, sealer, settings, egress, now=self.clock, clock=self.clock.seconds)
        self.logins = Logins(self.database, sealer, settings, tokens, lambda: base, now=self.clock)
        self.pages = LoginPages(self.logins)
        self.stage = Stage(settings, logins=self.logins, **options)
        self.stage.servers.start()

    def person(self) -> Person:
        return Person(self.pages)

    async def prepared(self, actor: str, **caller: Any) -> set[str]:
        """Return the tools that a request of an actor is offered."""
        await self.stage.servers.prepare(Caller(actor, "i", **caller), (), WITHIN)
        return set(self.stage.catalog.names)

    async def call(self, tool: str, actor: str, arguments: dict[str, Any] | None = None, **caller: Any) -> str:
        found = self.stage.catalog.get(f"bmcp_ours_{tool}")
        assert found is not None, self.stage.catalog.names
        who = Caller(actor, "i", **caller)
        result = await self.stage.servers.call(found, arguments or {}, WITHIN, caller=who)
        return "".join(block["text"] for block in result["content"])

    async def link(self, actor: str, tool: str | None = None) -> str:
        """Call a tool as an actor who is not logged in, and return the link in the error."""
        tool = tool or ("login" if "bmcp_ours_login" in self.stage.catalog.names else "whoami")
        with pytest.raises(CallError) as caught:
            await self.call(tool, actor)
        assert caught.value.kind == "login"
        assert LINK in str(caught.value)
        return str(caught.value).split()[-1]

    async def log_in(self, actor: str) -> PageAnswer:
        return await self.person().open(await self.link(actor))

    async def close(self) -> None:
        await self.stage.servers.close()
        self.database.close()


Start = Callable[..., Process]


@pytest.fixture
def server() -> Iterator[OAuthMcp]:
    with OAuthMcp() as server:
        server.provider.user = "ada-there"
        yield server


@pytest.fixture
async def process(database: Database, server: OAuthMcp) -> AsyncIterator[Start]:
    """Start processes over one database, with the server as `ours`."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    async with AsyncExitStack() as stack:
        with opened(database), closing(database.mcp_logins()):

            def start(settings: HttpServer | None = None, **options: Any) -> Process:
                made = Process(database, {"ours": settings or server.settings()}, **options)
                stack.push_async_callback(made.close)
                return made

            yield start
            await stack.aclose()
