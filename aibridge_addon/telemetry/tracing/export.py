"""Send spans and metrics to a collector, in the background. A slow or dead collector costs nothing but spans.

    span ─▶ bounded queue ─▶ thread: batches ─▶ OTLP over HTTP
              full: dropped, counted             refused or no answer: dropped, counted

Endpoint, headers, timeouts, queue and sampler are OpenTelemetry's own variables (`OTEL_*`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.sdk.environment_variables import (
    OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT,
    OTEL_BSP_MAX_QUEUE_SIZE,
    OTEL_SERVICE_NAME,
    OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from aibridge_addon.telemetry.tracing.attributes import MAX_ATTRIBUTE
from aibridge_addon.telemetry.tracing.writer import Ids

logger = logging.getLogger(__name__)

SCOPE = "aibridge"
"""The name of the service, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` has one, and of the scope."""
QUEUE = 2048
"""Spans that wait for the collector, unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise."""
MAX_STOP = 2.0
"""Seconds. Maximum time that a stop waits for the collector."""
LOG_EVERY = 60.0
"""Seconds between two lines about a collector that does not take spans."""
LIBRARY = "opentelemetry"
"""The library's logger. It logs every failed attempt; this module logs one line a minute instead."""


class Counted(SpanExporter):
    """Counts the spans that the collector did not get."""

    def __init__(self, exporter: SpanExporter, queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost = 0
        """Spans that were dropped."""
        self.waiting = 0
        """Spans that were queued and neither sent nor dropped."""
        self._exporter = exporter
        self._queue = queue
        self._clock = clock
        self._logged_at: float | None = None
        self._closed = False
        self._lock = threading.Lock()

    def admit(self) -> bool:
        """Count a span that is to be queued. Returns False if the queue is full."""
        with self._lock:
            full = self._closed or self.waiting >= self._queue
            if full:
                self.lost += 1
            else:
                self.waiting += 1
        if full:
            self._log("spans wait for the collector and the queue is full")
        return not full

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            failed = result is not SpanExportResult.SUCCESS
            with self._lock:
                self.waiting = max(0, self.waiting - len(spans))
                if failed and not self._closed:  # after the end, all that waited have been counted
                    self.lost += len(spans)
            if failed:
                self._log("the collector did not take spans")
        return result

    def close(self) -> None:
        """Count what still waits as lost."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.lost += self.waiting
                self.waiting = 0

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def _log(self, reason: str) -> None:
        now = self._clock()
        if self._logged_at is None or now - self._logged_at >= LOG_EVERY:
            self._logged_at = now
            logger.warning("aibridge: %s (see OTEL_EXPORTER_OTLP_ENDPOINT); lost so far: %d", reason, self.lost)


class _Bounded(BatchSpanProcessor):
    """The library's processor drops the oldest spans without a count that can be read."""

    def __init__(self, exporter: Counted, queue: int) -> None:
        super().__init__(exporter, max_queue_size=queue, max_export_batch_size=_batch_size(queue))
        self._counted = exporter

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled and self._counted.admit():
            super().on_end(span)


class Exporting:
    """The way to the collector. It starts when it is made."""

    def __init__(self, exporter: SpanExporter, reader: MetricReader | None) -> None:
        queue = queue_size()
        self.ids = Ids()
        self.counted = Counted(exporter, queue)
        resource = own_resource()
        self._tracers = TracerProvider(
            resource=resource, id_generator=self.ids, span_limits=span_limits(), shutdown_on_exit=False
        )
        self._tracers.add_span_processor(_Bounded(self.counted, queue))
        self._meters = MeterProvider([reader] if reader is not None else [], resource, shutdown_on_exit=False)
        self.tracer = self._tracers.get_tracer(SCOPE)
        self.meter = self._meters.get_meter(SCOPE)
        self._threads: list[threading.Thread] = []

    def close(self, timeout: float | None) -> None:
        """Send what waits. Blocks for at most `timeout` seconds, and no longer than `MAX_STOP`. None: not at all."""
        if not self._threads:
            ends = (self._tracers.shutdown, self._meters.shutdown)
            self._threads = [threading.Thread(target=_quietly, args=(end,), daemon=True) for end in ends]
            for thread in self._threads:
                thread.start()
        if timeout is None:
            return
        deadline = time.monotonic() + min(timeout, MAX_STOP)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if not self.ended:
            self.counted.close()
            logger.warning("aibridge: the collector is slow or away; spans lost in all: %d", self.counted.lost)

    @property
    def ended(self) -> bool:
        """Whether everything was sent or dropped after `close`."""
        return bool(self._threads) and not any(thread.is_alive() for thread in self._threads)


def _quietly(end: Callable[[], object]) -> None:
    try:
        end()
    except Exception as e:  # noqa: BLE001 (of the library; there is nothing left to lose)
        logger.debug("the end of an exporter failed: %s", e)


def queue_size() -> int:
    text = os.environ.get(OTEL_BSP_MAX_QUEUE_SIZE, "")
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 10**7 else QUEUE


def _batch_size(queue: int) -> int | None:
    """Return a size that the library accepts. None: its own."""
    return queue if queue < 512 else None


def span_limits() -> SpanLimits:
    """Return the limits of the environment, or else ours."""
    named = (OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT, OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT)
    if any(os.environ.get(name) for name in named):
        return SpanLimits()
    return SpanLimits(max_span_attribute_length=MAX_ATTRIBUTE)


def own_resource() -> Resource:
    """Return the process's resource. The environment's name of the service counts."""
    named = os.environ.get(OTEL_SERVICE_NAME) or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({} if named else {"service.name": SCOPE})
