"""The way to the collector: what is lost is counted, and a stop waits for a bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aibridge_addon.config.errors import ConfigError
from aibridge_addon.config.schema import Tracing
from aibridge_addon.telemetry.tracing.attributes import MAX_ATTRIBUTE
from aibridge_addon.telemetry.tracing.export import MAX_STOP, Exporting, own_resource
from aibridge_addon.telemetry.tracing.sampling import Sampled
from aibridge_addon.telemetry.tracing.sink import is_on
from tests.support.polling import poll_until

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"


class Stuck(SpanExporter):
    """A collector that does not answer."""

    def __init__(self) -> None:
        self.asked, self.over = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.over.wait(60)
        return SpanExportResult.FAILURE


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    exporter = Stuck()
    yield exporter
    exporter.over.set()


def spans(way: Exporting, count: int) -> None:
    for number in range(count):
        way.tracer.start_span(f"span {number}").end()


def test_spans_beyond_the_queue_are_counted_as_lost_and_block_nothing(stuck: Stuck) -> None:
    way = Exporting(stuck, None)
    spans(way, 30)
    assert way.counted.lost == 20 and way.counted.waiting == 10
    way.close(None)


def test_a_stop_waits_for_a_bounded_time_and_counts_what_was_left(stuck: Stuck) -> None:
    way = Exporting(stuck, InMemoryMetricReader())
    spans(way, 3)
    assert stuck.asked.wait(20)
    began = time.monotonic()
    way.close(30)
    assert MAX_STOP * 0.9 < time.monotonic() - began < MAX_STOP + 8  # of a machine that is busy
    assert way.counted.lost == 3
    stuck.over.set()
    poll_until(lambda: way.ended, 20, what="the end of the threads")
    assert way.counted.lost == 3


def test_a_stop_without_time_does_not_wait(stuck: Stuck) -> None:
    way = Exporting(stuck, None)
    spans(way, 1)
    way.close(0)
    assert way.counted.lost == 1 and not way.ended


def test_what_waits_is_sent_before_the_end() -> None:
    exporter = InMemorySpanExporter()
    way = Exporting(exporter, None)
    spans(way, 5)
    way.close(20)
    assert way.ended and way.counted.lost == 0
    assert len(exporter.get_finished_spans()) == 5


def test_batches_that_are_refused_are_counted() -> None:
    class Refusing(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.FAILURE

    way = Exporting(Refusing(), None)
    spans(way, 5)
    way.close(20)
    assert way.counted.lost == 5


def test_a_value_is_cut_at_our_length_or_at_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, expected in ((None, MAX_ATTRIBUTE), ("100", 100)):
        if limit is not None:
            monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", limit)
        exporter = InMemorySpanExporter()
        way = Exporting(exporter, None)
        way.tracer.start_span("s", attributes={"long": "x" * 1_000_000, "short": "y"}).end()
        way.close(20)
        [span] = exporter.get_finished_spans()
        assert {name: len(str(value)) for name, value in (span.attributes or {}).items()} == {
            "long": expected,
            "short": 1,
        }


def test_the_name_of_the_service_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_resource().attributes["service.name"] == "aibridge"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=ours,team=x")
    assert own_resource().attributes["service.name"] == "ours"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    assert own_resource().attributes["service.name"] == "mine"


@pytest.mark.parametrize(
    ("sampler", "argument", "with_parent", "alone"),
    [
        ("parentbased_always_on", "", (True, False), True),
        ("parentbased_traceidratio", "0", (True, False), False),
        ("always_off", "", (False, False), False),
        ("always_on", "", (True, True), True),
    ],
)
def test_tool_servers_get_the_decision_of_the_sampler(
    monkeypatch: pytest.MonkeyPatch, sampler: str, argument: str, with_parent: tuple[bool, bool], alone: bool
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    context = Sampled()
    assert (context("i", TRACEPARENT + "1", None).sampled, context("i", TRACEPARENT + "0", None).sampled) == with_parent
    assert context("i", None, None).sampled is alone


@pytest.mark.parametrize(
    ("enabled", "environment", "expected"),
    [
        ("auto", {}, False),
        ("auto", ENDPOINT, True),
        ("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ("auto", {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
        ("auto", {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False),
        (True, {}, True),
        (True, {"OTEL_SDK_DISABLED": "true"}, False),
        (False, ENDPOINT, False),
    ],
)
def test_traces_are_on_as_the_key_and_the_environment_say(
    enabled: object, environment: dict[str, str], expected: bool
) -> None:
    assert is_on(Tracing.model_validate({"enabled": enabled}), environment) is expected


def test_a_protocol_that_is_not_there_stops_a_start_that_demands_traces() -> None:
    with pytest.raises(ConfigError, match="grpc"):
        is_on(Tracing(enabled=True), {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
