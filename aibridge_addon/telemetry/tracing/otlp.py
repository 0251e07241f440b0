"""Exporters for OTLP over HTTP, set up by OpenTelemetry's own variables."""

from __future__ import annotations

import logging
import os

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from aibridge_addon.telemetry.tracing.export import LIBRARY, Exporting


class _Off(SpanExporter):
    """Takes spans that are not wanted: `OTEL_TRACES_EXPORTER` does not name `otlp`."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def exporting() -> Exporting:
    """Open the way to the collector that the environment names."""
    logging.getLogger(LIBRARY).setLevel(logging.CRITICAL)
    spans = OTLPSpanExporter() if _wanted("OTEL_TRACES_EXPORTER") else _Off()
    reader: MetricReader | None = None
    if _wanted("OTEL_METRICS_EXPORTER"):
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    return Exporting(spans, reader)


def _wanted(variable: str) -> bool:
    """Return whether this signal goes to OTLP. It is the default and the only exporter here."""
    return "otlp" in os.environ.get(variable, "otlp").replace(" ", "").split(",")
