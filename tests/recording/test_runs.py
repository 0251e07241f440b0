"""The usage of one instance."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from aibridge_addon.config.schema import Settings
from aibridge_addon.config.urls import DatabaseUrl
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.runs import Calls, of_instance
from tests.support.databases import Database, write
from tests.support.examples import ENDED, STARTED, TOKENS, TOOL, uid

OURS, OTHER = str(uid("ours")), str(uid("other"))


def record(place: Database) -> None:
    for number, instance in enumerate((OURS, OURS, OTHER)):
        own = uid(f"i{number}")
        write(
            place,
            replace(STARTED, id=own, instance_id=instance, model="asked"),
            replace(TOKENS, id=uid(f"t{number}"), interception_id=own, model="answered", kind="answer", cost_usd=0.5),
            replace(TOKENS, id=uid(f"u{number}"), interception_id=own, model="free", cost_usd=None, kind="advisor"),
            replace(TOOL, id=uid(f"c{number}"), interception_id=own, tool="now", injected=True, invocation_error=None),
            replace(
                TOOL, id=uid(f"d{number}"), interception_id=own, tool="now", injected=True, invocation_error="away"
            ),
            replace(ENDED, interception_id=own, status="failed" if number == 1 else "completed"),
        )


def test_only_an_instances_own_usage_counts(database: Database) -> None:
    record(database)
    settings = Settings(database=DatabaseUrl.parse(database.url))
    with queries(settings) as rows:
        found = of_instance(rows, OURS, STARTED.started_at - timedelta(days=1))
        nothing = of_instance(rows, OURS, STARTED.started_at + timedelta(days=1))
    assert {model: usage.interceptions for model, usage in found.models.items()} == {"answered": 2, "free": 0}
    assert {model: usage.failed for model, usage in found.models.items()} == {"answered": 1, "free": 0}
    assert {model: usage.cost() for model, usage in found.models.items()} == {"answered": 1.0, "free": None}
    whole = found.whole.columns()
    assert (whole["interceptions"], whole["failed"], whole["cost_usd"], whole["unpriced"]) == (2, 1, 1.0, 2)
    assert whole["output_tokens"] == 4 * TOKENS.output_tokens
    assert found.injected_calls == {"answered": 4}
    assert found.tools == [Calls("now", TOOL.server_name or "", injected=True, calls=4, failed=2)]
    assert (nothing.models, nothing.tools) == ({}, [])
