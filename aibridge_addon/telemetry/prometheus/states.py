"""Gauges whose values are read at each scrape: the recorder, central keys, MCP servers, and configured providers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from aibridge_addon.config.providers import Provider
from aibridge_addon.records import KeyPoolState, Readiness, ServerState


def collected(prefix: str, now: Readiness, providers: Sequence[Provider], internal_errors: int) -> Iterator[Metric]:
    """Yield the metrics of a state."""
    yield GaugeMetricFamily(prefix + "retention_backlog", "Interceptions that have expired.", value=now.expired)
    yield GaugeMetricFamily(
        prefix + "buffered_bytes", "Requests and answers that are in memory.", value=now.buffered_bytes
    )
    name = prefix + "recorder_"
    yield GaugeMetricFamily(name + "queue_depth", "Records that are in memory only.", value=now.waiting)
    yield GaugeMetricFamily(name + "spooled_bytes", "Files of records that wait.", value=now.spooled_bytes)
    yield CounterMetricFamily(name + "lost_records_total", "Records that were dropped.", value=now.lost)
    yield CounterMetricFamily(prefix + "lost_spans_total", "Spans of traces that were dropped.", value=now.lost_spans)
    yield CounterMetricFamily(
        prefix + "internal_errors_total", "Unexpected exceptions in the log.", value=internal_errors
    )
    yield _providers(prefix, providers)
    yield _key_pools(prefix, now.key_pools)
    yield from _servers(prefix, now.servers)


def _providers(prefix: str, providers: Sequence[Provider]) -> Metric:
    labels = ("provider_name", "provider_type", "status")
    family = GaugeMetricFamily(prefix + "provider_info", "1 for each configured provider.", labels=labels)
    for provider in providers:
        family.add_metric((provider.name, provider.type, "enabled"), 1)
    return family


def _key_pools(prefix: str, pools: Sequence[KeyPoolState]) -> Metric:
    family = GaugeMetricFamily(prefix + "key_pool_state", "Central keys by state.", labels=("provider", "state"))
    for pool in pools:
        for state, count in (
            ("valid", pool.valid),
            ("temporary", pool.rate_limited),
            ("permanent", pool.unauthorized),
        ):
            family.add_metric((pool.provider_name, state), count)
    return family


def _servers(prefix: str, servers: Sequence[ServerState]) -> Iterator[Metric]:
    up = GaugeMetricFamily(prefix + "mcp_server_up", "1 while an MCP server is connected.", labels=("server",))
    tools = GaugeMetricFamily(prefix + "mcp_tools", "Tools of an MCP server that are offered.", labels=("server",))
    left_out = GaugeMetricFamily(prefix + "mcp_tools_left_out", "Tools that cannot be offered.", labels=("server",))
    for server in servers:
        up.add_metric((server.name,), server.is_up)
        tools.add_metric((server.name,), server.tools)
        left_out.add_metric((server.name,), server.left_out)
    yield from (up, tools, left_out)
