"""The gauge of plans' limits."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from aibridge_addon.config import schema
from aibridge_addon.records import PlanLimit
from aibridge_addon.telemetry.labels import OTHER
from aibridge_addon.telemetry.prometheus.metrics import Metrics
from aibridge_addon.telemetry.prometheus.plan_limits import MAX_KNOWN, WINDOWS, PlanLimitGauge
from tests.support.examples import PLAN_LIMIT
from tests.support.reading import NOON

HOUR = timedelta(hours=1)


class Gauge:
    def __init__(self, *records: PlanLimit) -> None:
        self.now = NOON
        self.gauge = PlanLimitGauge("plan_limit_used_ratio", lambda: self.now)
        for record in records:
            self.gauge.set(record)

    def at(self, now: datetime = NOON) -> dict[tuple[str, str], float]:
        self.now = now
        samples = self.gauge.collect().samples
        assert {sample.name for sample in samples} <= {"plan_limit_used_ratio"}
        return {(sample.labels["provider"], sample.labels["window"]): sample.value for sample in samples}


def test_a_window_has_what_was_said_last() -> None:
    week = replace(PLAN_LIMIT, window_name="7d", used_ratio=0.1)
    gauge = Gauge(PLAN_LIMIT, week, replace(PLAN_LIMIT, used_ratio=0.43))
    assert gauge.at() == {("anthropic", "5h"): 0.43, ("anthropic", "7d"): 0.1}


def test_of_several_credentials_the_one_that_has_used_most_is_shown() -> None:
    gauge = Gauge(replace(PLAN_LIMIT, used_ratio=0.9), replace(PLAN_LIMIT, credential_hint="sk-b...0002"))
    assert gauge.at() == {("anthropic", "5h"): 0.9}


def test_a_window_that_was_reset_is_unused() -> None:
    gauge = Gauge(PLAN_LIMIT)
    assert gauge.at(NOON + 5 * HOUR) == {("anthropic", "5h"): 0.0}
    assert gauge.at(NOON + 4 * HOUR) == {("anthropic", "5h"): 0.42}


def test_a_reset_in_the_past_says_nothing() -> None:
    assert Gauge(replace(PLAN_LIMIT, resets_at=NOON - HOUR)).at() == {("anthropic", "5h"): 0.42}


def test_a_window_without_a_share_is_left_out() -> None:
    assert Gauge(replace(PLAN_LIMIT, used_ratio=None)).at() == {}


def test_windows_are_bounded() -> None:
    gauge = Gauge(*(replace(PLAN_LIMIT, window_name=f"w{number}") for number in range(WINDOWS + 5)))
    assert len(gauge.at()) == WINDOWS + 1
    assert gauge.at()["anthropic", OTHER] == 0.42
    for number in range(MAX_KNOWN):
        gauge.gauge.set(replace(PLAN_LIMIT, window_name="w1", credential_hint=str(number)))
    assert set(gauge.at()) == {("anthropic", "w1")}


def test_the_metrics_have_it() -> None:
    made = Metrics(schema.Metrics())
    made.emit(replace(PLAN_LIMIT, resets_at=None))
    labels = {"provider": "anthropic", "window": "5h"}
    assert made.registry.get_sample_value("aibridge_plan_limit_used_ratio", labels) == 0.42
