"""The hourly usage as a database has it, and as a plain sum over its rows."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from aibridge_addon.recording.hourly_usage import AMOUNTS, KEY
from tests.support.database import Row
from tests.support.databases import Database


def hourly(database: Database) -> list[Row]:
    return database.query(f"select * from aibridge_hourly_usage order by {', '.join(KEY)}")


def summed(database: Database) -> list[Row]:
    """Sum up the rows that the hourly usage is made of."""
    interceptions = {row["id"]: row for row in database.query("select * from aibridge_interceptions")}
    usages = database.query("select * from aibridge_token_usages")
    sums: defaultdict[tuple[Any, ...], dict[str, Any]] = defaultdict(lambda: dict.fromkeys(AMOUNTS, 0))
    answers: defaultdict[str, list[tuple[int, str, str, str]]] = defaultdict(list)
    for usage in usages:
        interception = interceptions[usage["interception_id"]]
        if usage["kind"] == "answer" and usage["model"]:
            answers[interception["id"]].append((usage["turn"], usage["created_at"], usage["id"], usage["model"]))
        total = sums[key(usage["created_at"], interception, usage["model"])]
        for column in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens"):
            total[column] += usage[column]
        total["cost_usd"] += usage["cost_usd"] or 0
        total["unpriced"] += usage["cost_usd"] is None
    for interception in interceptions.values():
        if interception["ended_at"] is not None:
            model = max(answers[interception["id"]], default=(0, "", "", interception["model"]))[-1]
            total = sums[key(interception["ended_at"], interception, model)]
            total["interceptions"] += 1
            total["failed"] += interception["status"] == "failed"
    return [dict(zip(KEY, place, strict=True)) | sums[place] for place in sorted(sums)]


def key(at: str, interception: Row, model: str | None) -> tuple[Any, ...]:
    names = (interception["initiator_id"], interception["provider_name"], model or "", interception["client"])
    return (f"{at[:13]}:00:00.000000+00:00", *names, interception["billing"] or "")
