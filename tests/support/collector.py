"""A collector that takes OTLP over HTTP as OpenTelemetry's own does, and keeps what it parsed.

with Collector() as collector:
    proxy = start_proxy(env=collector.environment)
    span = collector.wait_for_span("Intercept")
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.polling import poll_until

PROTOBUF = "application/x-protobuf"


class Collector:
    def __init__(self, *, status: int = 200, silent: bool = False) -> None:
        """`status` of each answer. `silent`: no request is answered before the end."""
        self.status = status
        self.paths: list[str] = []
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.asked = threading.Event()
        self._over = threading.Event()
        self._silent = silent
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.asked.set()
                if collector._silent:
                    collector._over.wait(60)
                    return
                assert self.headers["content-type"] == PROTOBUF
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = collector._take(self.path, body)
                self.send_response(collector.status)
                self.send_header("content-type", PROTOBUF)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _take(self, path: str, body: bytes) -> bytes:
        self.paths.append(path)
        if self.status != 200:
            return b""
        if path.endswith("/v1/traces"):
            self.traces.append(ExportTraceServiceRequest.FromString(body))
            return bytes(ExportTraceServiceResponse().SerializeToString())
        self.metrics.append(ExportMetricsServiceRequest.FromString(body))
        return bytes(ExportMetricsServiceResponse().SerializeToString())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a proxy that sends here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
            "NO_PROXY": "127.0.0.1",
        }

    # --- what came ------------------------------------------------------------------------------------------------

    @property
    def resources(self) -> list[dict[str, Any]]:
        return [attributes(sent.resource.attributes) for request in self.traces for sent in request.resource_spans]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in list(self.traces)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def wait_for_span(self, name: str, count: int = 1) -> Span:
        """Wait for so many spans of a name, and return the last one."""
        poll_until(lambda: len(self.named(name)) >= count, 30, what=f"{count} spans {name!r}")
        return self.named(name)[-1]

    def metric(self, name: str) -> Metric | None:
        """Return the newest numbers of a metric."""
        return next((metric for metric in reversed(list(self._metrics())) if metric.name == name), None)

    def wait_for_metric(self, name: str) -> Metric:
        found = poll_until(lambda: self.metric(name), 30, what=f"the metric {name}")
        assert found is not None
        return found

    def _metrics(self) -> Iterator[Metric]:
        for request in list(self.metrics):
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    yield from scope.metrics


def attributes(found: Any) -> dict[str, Any]:
    """The attributes of a span, a resource or a data point, as Python has them."""
    pairs: list[KeyValue] = list(found)
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind is not None else None
