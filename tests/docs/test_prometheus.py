"""Every query of the dashboard for Prometheus, and its alerts, in a real Prometheus that scraped the real addon."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.turns import JSON_BODY, configuration
from tests.support.client import connect_through
from tests.support.grafana import PROMQL, Query, expanded_promql
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until
from tests.support.prometheus import program, running_prometheus
from tests.support.upstream import Answer, ScriptedUpstream, unused_port

FOLDER = Path(__file__).parents[2] / "docs" / "prometheus"
METRICS = FOLDER.parent / "metrics.md"
CHOSEN = {"provider": ["anthropic", "openai"]}
QUESTION = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
USAGE = {"input_tokens": 2, "output_tokens": 5}
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "content": [], "stop_reason": "end_turn", "usage": USAGE}
GOOD = Answer.json({**MESSAGE, "model": QUESTION["model"]})
FAILED = Answer.json({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, 529)

BUDGETS = "[{name: daily, per: actor, period: day, requests: 10}]"
EXACT = {
    ("Budgets", "A"): [({"name": "daily", "subject": "ada"}, 0.4)],
    ("Requests in flight", "A"): [({"provider": "anthropic"}, 0)],
    ("MCP servers", "A"): [({"server": "ours"}, 1)],
    ("MCP servers", "B"): [({"server": "ours"}, 24)],
    ("MCP servers", "C"): [({"server": "ours"}, 0)],
    ("Records lost", "A"): [({}, 0)],
    ("Internal errors", "A"): [({}, 0)],
    ("Recorder", "A"): [({}, 0)],
    ("Recorder", "B"): [({}, 0)],
    ("Providers", "A"): [
        ({"provider_name": name, "provider_type": name, "status": "enabled"}, 1) for name in ("anthropic", "openai")
    ],
}
"""By panel and query: its samples, where they do not depend on time."""
EMPTY = {
    ("Plan limits", "A"),
    ("Circuit breakers", "A"),
    ("Central keys", "A"),
    ("Central keys", "B"),
    ("Refused requests", "A"),
}
"""Queries of metrics that this traffic does not cause."""
LATENCY = "Latency: total, upstream, ours"
FAILED_SHARE = "Failed share by provider"
OF_RATES = {LATENCY, FAILED_SHARE}
"""Panels that divide rates of several series: exact over counters only."""


def promtool(*arguments: str) -> str:
    ended = subprocess.run([program("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def of_totals(query: Query) -> str:
    """Return the query over counters instead of rates: Prometheus extrapolates each rate by another factor."""
    expression, replaced = re.subn(r"rate\((.+?)\[5m\]\)", r"\1", expanded_promql(query.text, CHOSEN))
    assert replaced
    return expression


def test_the_configuration_and_its_alerts_are_valid() -> None:
    assert "is valid prometheus config file syntax" in promtool("check", "config", "prometheus.yml")
    assert "12 rules found" in promtool("check", "rules", "alerts.yml")


def test_every_alert_fires_if_and_only_if_it_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_every_alert_is_tested_and_described() -> None:
    alerts = re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text())
    tested = re.findall(r"alertname: (\w+)", (FOLDER / "alerts_test.yml").read_text())
    assert sorted(tested) == sorted(alerts * 2), "each fires in one test and stays silent in the other"
    described = re.findall(r"^\| `(Aibridge\w+)` ", (FOLDER.parent / "dashboards.md").read_text(), re.MULTILINE)
    assert described == alerts


def test_alerts_and_dashboard_use_only_metrics_that_exist() -> None:
    documented = set(re.findall(r"^\| `(aibridge_\w+)`", METRICS.read_text(), re.MULTILINE))
    used = (FOLDER / "alerts.yml").read_text() + "".join(expanded_promql(query.text, CHOSEN) for query in PROMQL)
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"aibridge_\w+", used)}
    assert len(names) > 20
    assert names <= documented


def test_every_query_of_the_dashboard_has_an_answer(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, tmp_path: Path
) -> None:
    port = unused_port()
    mcp = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    more = f"actor: {{default: ada}}\nmetrics: {{listen: '127.0.0.1:{port}'}}\nbudgets: {BUDGETS}"
    proxy = start_proxy(config=configuration(upstream.url, mcp, more))
    proxy.wait_for_log(r"MCP server ours: connected, \d+ tools")
    with running_prometheus(tmp_path / "prometheus", f"127.0.0.1:{port}") as prometheus:
        for done in (2, 4):  # a rate needs a change between two scrapes
            upstream.answer(GOOD, FAILED, Answer.json({"data": []}))
            with Client(proxy, ANTHROPIC) as client:
                for _ in range(2):
                    client.post("/v1/messages", json.dumps(QUESTION).encode(), JSON_BODY)
                client.ask("GET", "/v1/models")
            with pytest.raises(OSError):
                connect_through(proxy, "localhost", upstream.port)  # an unknown CA: tunnelled, and not trusted
            wait_for_ended(proxy, done)
            counted = f"sum(aibridge_interceptions_total) == {done} and sum(aibridge_recorder_queue_depth) == 0"
            poll_until(lambda: prometheus.query(counted), 30, what=f"{done} interceptions")  # noqa: B023
        found = {(query.panel, query.ref): prometheus.query(expanded_promql(query.text, CHOSEN)) for query in PROMQL}
        poll_until(lambda: prometheus.query("sum(aibridge_overhead_seconds_count) == 4"), 30, what="4 overheads")
        exact = {
            (query.panel, query.ref): prometheus.query(of_totals(query)) for query in PROMQL if query.panel in OF_RATES
        }
    for key, expected in EXACT.items():
        assert sorted(found[key], key=str) == expected, key
    assert {key for key, samples in found.items() if not samples} == EMPTY
    [(_, share)] = exact[FAILED_SHARE, "A"]
    assert share == pytest.approx(0.5)
    [[(_, total)], [(_, upstream_share)], [(_, ours_share)]] = [exact[LATENCY, ref] for ref in "ABC"]
    assert total == pytest.approx(upstream_share + ours_share)
