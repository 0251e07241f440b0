"""One address for `/metrics`, `/healthz`, `/readyz` and the login pages of all workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.schema import Metrics
from aibridge_addon.proxy.connection.threads import on_thread
from aibridge_addon.proxy.workers.supervisor import Supervisor
from aibridge_addon.records.pages import PageAnswer, PageRequest
from aibridge_addon.telemetry.prometheus.listener import Listener, ListenError
from aibridge_addon.telemetry.prometheus.workers import LABEL, MergedMetrics, Unanswered, ask, pages

OK = 200
THREAD = "aibridge-probe"


class Endpoint:
    def __init__(self, supervisor: Supervisor, settings: Metrics, loop: asyncio.AbstractEventLoop) -> None:
        assert settings.listen is not None
        self._supervisor = supervisor
        self._prefix = settings.prefix
        self._listener = Listener(
            settings.listen,
            MergedMetrics(self._addresses, self.own_metrics),
            ready=self._readiness,
            healthy=self._is_healthy,
            logins=self._login,
            loop=loop,
        )

    @property
    def address(self) -> str:
        return self._listener.address

    def start(self) -> None:
        """Raises ConfigError: the address cannot be listened on."""
        try:
            self._listener.start()
        except ListenError as e:
            expected = "an address that is free, or null; without a file --set aibridge_metrics=HOST:PORT or off"
            raise ConfigError([Problem("metrics.listen", str(e), expected)]) from e

    def stop(self) -> None:
        self._listener.stop()

    def _addresses(self) -> Mapping[str, str]:
        workers = self._supervisor.workers
        return {str(worker.number): worker.metrics for worker in workers if worker.is_ready and worker.metrics}

    def own_metrics(self) -> Iterator[Metric]:
        """Return what the supervisor itself counts."""
        up = GaugeMetricFamily(f"{self._prefix}worker_up", "Whether a worker serves requests.", labels=[LABEL])
        restarts = CounterMetricFamily(
            f"{self._prefix}worker_restarts", "How often a worker was started again.", labels=[LABEL]
        )
        connections = GaugeMetricFamily(
            f"{self._prefix}worker_connections", "Open connections of clients that a worker has.", labels=[LABEL]
        )
        for worker in self._supervisor.workers:
            label = [str(worker.number)]
            up.add_metric(label, float(worker.is_ready))
            restarts.add_metric(label, worker.restarts)
            connections.add_metric(label, self._supervisor.ports.connections(worker.number))
        yield from (up, restarts, connections)

    async def _login(self, request: PageRequest) -> PageAnswer:
        """Any worker can answer: what a login needs is in the database."""
        for address in self._addresses().values():
            with suppress(Unanswered):
                return await on_thread(THREAD, partial(ask, address, request))
        return PageAnswer(HTTPStatus.BAD_GATEWAY, {"Content-Type": "text/plain; charset=utf-8"}, b"no worker answers\n")

    async def _is_healthy(self) -> bool:
        """Whether any worker is. During the start and a stop there may be none."""
        addresses = self._addresses()
        found = await on_thread(THREAD, lambda: pages(addresses, "/healthz"))
        return not found or any(page is not None and page[0] == OK for page in found.values())

    async def _readiness(self) -> tuple[bool, Mapping[str, Any]]:
        """Ready while any worker is. The details are those of each worker."""
        addresses = self._addresses()
        found = await on_thread(THREAD, lambda: pages(addresses, "/readyz"))
        ready = any(page is not None and page[0] == OK for page in found.values())
        details = {number: "no answer" if page is None else json.loads(page[1]) for number, page in found.items()}
        away = {str(worker.number): "away" for worker in self._supervisor.workers if not worker.is_ready}
        return ready and not self._supervisor.is_stopping, {"workers": {**details, **away}}
