"""The pages over the record of a team, with both databases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from starlette.testclient import TestClient

from aibridge_addon.config.schema import Settings
from aibridge_addon.recording.database import queries
from aibridge_addon.web.app import Source, application
from tests.support import team
from tests.support.databases import Database, write
from tests.support.reading import NOON

LOCAL = "http://127.0.0.1:9470"


def source_of(database: Database, budgets: Iterable[Mapping[str, Any]] = (), now: datetime = NOON) -> Source:
    settings = Settings.model_validate({"database": database.url})
    return Source(
        open=partial(queries, settings),
        budgets=lambda: [dict(row) for row in budgets],
        name=str(settings.database),
        zone=ZoneInfo("UTC"),
        now=lambda: now,
    )


@pytest.fixture
def pages(database: Database) -> TestClient:
    """The pages over a month of a team and one session, seen from this machine."""
    write(database, *team.month(NOON), *team.session(NOON))
    return TestClient(application(source_of(database), token=None), base_url=LOCAL, follow_redirects=False)
