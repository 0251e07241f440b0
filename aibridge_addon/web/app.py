"""The application of the pages: routes and templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import anyio
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from aibridge_addon.recording.queries import Queries
from aibridge_addon.recording.recent import change
from aibridge_addon.recording.sessions import NotFound
from aibridge_addon.records import DatabaseUnavailable
from aibridge_addon.telemetry.log.text import money, short_count
from aibridge_addon.web import pages, texts
from aibridge_addon.web.changes import Changes
from aibridge_addon.web.guard import LOGIN, STATIC, Guard, Wait
from aibridge_addon.web.pages import DEFAULT_DAYS, PERIODS, View

FOLDER = Path(__file__).parent
POLL = 2.0
MAX_PAGE = 1_000
MAX_PARAMETER = 512
"""Characters of a search text or an id."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where pages get their values. All functions block, and raise DatabaseUnavailable."""

    open: Callable[[], Queries]
    budgets: Callable[[], Sequence[dict[str, Any]]]
    name: str
    """The database, without its password."""
    zone: ZoneInfo
    now: Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Pages:
    source: Source
    changes: Changes
    templates: Environment

    def overview(self, request: Request) -> Response:
        return self._page(request, "overview", pages.overview)

    def sessions(self, request: Request) -> Response:
        asked = {name: _text(request, name) for name in ("search", "actor", "model")}
        return self._page(
            request, "sessions", lambda rows, view: pages.session_list(rows, view, **asked, page=_number(request))
        )

    def session(self, request: Request) -> Response:
        def values(rows: Queries, view: View) -> dict[str, Any]:
            id, actor = _text(request, "id"), _text(request, "actor")
            full = _text(request, "full") == "1"
            return pages.session(rows, view, id=id, actor=actor, page=_number(request), full=full)

        return self._page(request, "session", values)

    def tools(self, request: Request) -> Response:
        return self._page(request, "tools", pages.tools)

    def providers(self, request: Request) -> Response:
        return self._page(request, "providers", pages.providers)

    def budgets(self, request: Request) -> Response:
        return self._page(request, "budgets", lambda _rows, _view: pages.budgets(self.source.budgets))

    def unpriced(self, request: Request) -> Response:
        return self._page(request, "unpriced", pages.unpriced)

    def login(self, request: Request) -> Response:
        return self._html("login", {"wrong": "wrong" in request.query_params}, 200)

    def no_such_page(self, request: Request, _error: Exception) -> Response:
        return self._html("error", {"title": "Not found", "message": "There is no such page."}, 404)

    async def events(self, request: Request) -> Response:
        """Send an event each time that a request has begun or ended."""
        return self.changes.stream()

    def _page(self, request: Request, name: str, values: Callable[[Queries, View], dict[str, Any]]) -> Response:
        view = View(self.source.zone, self.source.now(), _days(request))
        try:
            with self.source.open() as rows:
                return self._html(name, values(rows, view) | {"days": view.days, "query": request.query_params}, 200)
        except NotFound as e:
            return self._html("error", {"title": "Not found", "message": str(e)}, 404)
        except DatabaseUnavailable as e:
            return self._html("error", {"title": "The database cannot be read", "message": str(e)}, 503)

    def _html(self, name: str, values: dict[str, Any], status: int) -> Response:
        template = self.templates.get_template(f"{name}.html")
        html = template.render(page=name, database=self.source.name, zone=self.source.zone, **values)
        return HTMLResponse(html.encode("utf-8", "replace"), status)


def application(source: Source, *, token: str | None, poll: float = POLL, wait: Wait = anyio.sleep) -> Starlette:
    """Return the application.

    Args:
        token: What users have to show. None: only this machine reaches the listener.
        poll: Seconds between two looks for something new.
        wait: Waits for seconds, before the answer to a wrong token.
    """
    shown = Pages(source, Changes(partial(_change, source), poll), _templates(source.zone))
    routes = [
        Route("/", shown.overview),
        Route("/sessions", shown.sessions),
        Route("/session", shown.session),
        Route("/tools", shown.tools),
        Route("/providers", shown.providers),
        Route("/budgets", shown.budgets),
        Route("/unpriced", shown.unpriced),
        Route("/events", shown.events),
        Route(LOGIN, shown.login),
        Mount(STATIC.rstrip("/"), StaticFiles(directory=FOLDER / "static")),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, token=token, wait=wait)],
        exception_handlers={404: shown.no_such_page},
    )


def _change(source: Source) -> str:
    try:
        with source.open() as rows:
            return change(rows)
    except DatabaseUnavailable:
        return ""


def _templates(zone: ZoneInfo) -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "shown": texts.shown,
        "named": texts.named,
        "count": texts.count,
        "short": short_count,
        "money": money,
        "dollars": texts.dollars,
        "percent": texts.percent,
        "seconds": texts.seconds,
        "local": partial(texts.at, zone),
    }
    made.globals |= {"periods": PERIODS}
    return made


def _text(request: Request, name: str) -> str:
    return request.query_params.get(name, "").strip()[:MAX_PARAMETER]


def _number(request: Request) -> int:
    """Return the number of the wanted page, from 1."""
    text = request.query_params.get("page", "1")
    return min(MAX_PAGE, max(1, int(text))) if text.isascii() and text.isdigit() and len(text) < 6 else 1


def _days(request: Request) -> int:
    text = request.query_params.get("days", "")
    days = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else DEFAULT_DAYS
    return days if days in PERIODS else DEFAULT_DAYS
