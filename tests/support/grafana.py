"""The dashboard of `docs/grafana/` as Grafana runs it: its variables and macros are replaced in each query."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "docs" / "grafana" / "aibridge.json"


@dataclass(frozen=True)
class Query:
    panel: str
    ref: str
    text: str

    def __str__(self) -> str:
        return f"{self.panel}, {self.ref}"


@cache
def dashboard() -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = json.loads(FILE.read_text())
    return loaded


def panels() -> list[Mapping[str, Any]]:
    """All panels but the headings of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def variables() -> dict[str, Mapping[str, Any]]:
    return {variable["name"]: variable for variable in dashboard()["templating"]["list"]}


def _queries(member: str) -> Iterator[Query]:
    for panel in panels():
        for target in panel["targets"]:
            if member in target:
                yield Query(panel["title"], target["refId"], target[member])


SQL = tuple(_queries("rawSql"))
PROMQL = tuple(_queries("expr"))


def expanded_sql(
    query: str, since: datetime, until: datetime, chosen: Mapping[str, list[str]], interval: int = 86400
) -> str:
    """Expand Grafana's macros for PostgreSQL, and variables in its format `sqlstring`. `interval`: seconds."""
    period = f"between '{since.isoformat()}' and '{until.isoformat()}'"
    query = re.sub(r"\$__timeFilter\(([\w.]+)\)", rf"\1 {period}", query)
    query = re.sub(
        r"\$__timeGroupAlias\(([\w.]+), \$__interval\)",
        rf"floor(extract(epoch from \1)/{interval})*{interval} as time",
        query,
    )
    query = re.sub(r"\$\{(\w+):sqlstring\}", lambda match: _sql_strings(chosen[match[1]]), query)
    assert "$" not in query, query
    return query


def _sql_strings(values: list[str]) -> str:
    return ",".join("'{}'".format(value.replace("'", "''")) for value in values)


def expanded_promql(query: str, chosen: Mapping[str, list[str]], prefix: str = "aibridge_") -> str:
    """Expand Grafana's variables for Prometheus, and variables in its format `regex`."""
    query = query.replace("${prefix}", prefix).replace("$__rate_interval", "5m").replace("$__range", "1h")
    query = re.sub(r"\$\{(\w+):regex\}", lambda match: "({})".format("|".join(chosen[match[1]])), query)
    assert "$" not in query, query
    return query
