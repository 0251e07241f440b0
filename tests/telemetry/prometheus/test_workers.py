"""The metrics of several processes are one page, in which each series has its worker."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aibridge_addon.config.values import Listen
from aibridge_addon.telemetry.prometheus.listener import Listener
from aibridge_addon.telemetry.prometheus.workers import MergedMetrics, pages
from tests.support.upstream import unused_port


def registry(value: float) -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("requests_total", 'Requests, "all".', ["model"], registry=made).labels('a "b"\n\\').inc(value)
    Gauge("queue", "Depth.", registry=made).set(value)
    Histogram("seconds", "Duration.", buckets=(1.0,), registry=made).observe(value)
    return made


def test_each_series_keeps_its_name_and_labels_and_gets_its_worker() -> None:
    listeners = [Listener(Listen("127.0.0.1", 0), registry(value)) for value in (1, 2)]
    for listener in listeners:
        listener.start()
    try:
        addresses = {str(n): f"127.0.0.1:{listener.port}" for n, listener in enumerate(listeners, 1)}
        addresses["3"] = f"127.0.0.1:{unused_port()}"
        page = generate_latest(MergedMetrics(lambda: addresses, lambda: ())).decode()
    finally:
        for listener in listeners:
            listener.stop()
    lines = [line for line in page.splitlines() if "_created" not in line]
    assert lines[:4] == [
        '# HELP requests_total Requests, "all".',
        "# TYPE requests_total counter",
        'requests_total{model="a \\"b\\"\\n\\\\",worker="1"} 1.0',
        'requests_total{model="a \\"b\\"\\n\\\\",worker="2"} 2.0',
    ]
    assert 'queue{worker="2"} 2.0' in lines
    assert 'seconds_bucket{le="1.0",worker="2"} 0.0' in lines
    assert 'seconds_count{worker="1"} 1.0' in lines
    assert page.count("# TYPE seconds histogram") == 1


def test_a_worker_that_does_not_answer_has_no_page() -> None:
    assert pages({"1": f"127.0.0.1:{unused_port()}"}, "/readyz") == {"1": None}
    assert pages({}, "/readyz") == {}
