"""The dashboard's file: what Grafana needs of it, and what a reader of the dashboard needs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.support.grafana import PROMQL, SQL, dashboard, panels, variables

TYPES = {"row", "stat", "timeseries", "table", "barchart", "bargauge", "piechart"}
"""Panels that come with Grafana, without a plugin."""
SOURCES = {"grafana-postgresql-datasource": "${postgres}", "prometheus": "${prometheus}"}
CODERS = (
    "Total usage",
    "Leaderboard per user",
    "Top models by interception count",
    "Top clients",
    "Cost by provider and model",
    "Total interceptions",
    "Interceptions over time by user",
    "User Prompts",
    "Tool Calls",
)
"""The panels of Coder's dashboard."""
ALL: list[Mapping[str, Any]] = dashboard()["panels"]


def test_ids_and_titles_are_unique() -> None:
    for member in ("id", "title"):
        assert [value for value, n in Counter(panel[member] for panel in ALL).items() if n > 1] == []


def test_every_panel_is_of_a_type_that_comes_with_grafana() -> None:
    assert {panel["type"] for panel in ALL} == TYPES


def test_every_member_is_one_of_grafanas_published_schema() -> None:
    """What the schema does not have is gone after it was read and written."""
    written = json.loads(JSONEncoder().encode(Dashboard.from_json(dict(dashboard()))))
    assert list(lost(dashboard(), written, "")) == []


def lost(ours: object, written: object, place: str) -> Iterator[str]:
    """Yield the places of members that are not written, or as something else. Further ones are defaults."""
    if isinstance(ours, Mapping) and isinstance(written, Mapping):
        for name, value in ours.items():
            yield from lost(value, written.get(name, "nothing"), f"{place}/{name}")
    elif isinstance(ours, list) and isinstance(written, list) and len(ours) == len(written):
        for number, (value, other) in enumerate(zip(ours, written, strict=True)):
            yield from lost(value, other, f"{place}/{number}")
    elif ours != written:
        yield place


def test_no_panel_lies_on_another_or_outside_the_grid() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in ALL]
    for title, place in places:
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0 and place["y"] >= 0, title
    for (title, one), (other, two) in combinations(places, 2):
        beside = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
        below = one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
        assert beside or below, (title, other)


def test_every_data_source_is_a_variable() -> None:
    assert {name for name, variable in variables().items() if variable["type"] == "datasource"} == {
        "postgres",
        "prometheus",
    }
    for panel in panels():
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert SOURCES[source["type"]] == source["uid"], panel["title"]
        assert {target["datasource"]["type"] for target in panel["targets"]} == {panel["datasource"]["type"]}


def test_every_variable_of_a_query_is_defined_and_has_a_format_that_escapes() -> None:
    for query in (*SQL, *PROMQL):
        for name, form in re.findall(r"\$\{(\w+)(?::(\w+))?\}", query.text):
            assert name in variables(), query
            assert form == ("sqlstring" if query in SQL else "" if name == "prefix" else "regex"), query


def test_every_panel_has_queries_with_different_references() -> None:
    for panel in panels():
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(references) == len(set(references)), panel["title"]


@pytest.mark.parametrize("title", CODERS)
def test_every_panel_of_coders_dashboard_is_there(title: str) -> None:
    assert title in {panel["title"] for panel in panels()}


def test_every_query_over_time_returns_a_time_first_and_is_sorted_by_it() -> None:
    for panel in panels():
        for target in panel["targets"]:
            if target.get("format") == "time_series":
                assert target["rawSql"].startswith("select $__timeGroupAlias("), panel["title"]
                assert "order by 1" in target["rawSql"], panel["title"]
