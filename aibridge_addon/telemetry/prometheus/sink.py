"""The sink that counts records and serves the numbers to Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.values import Listen
from aibridge_addon.records import Ask, Record, Sink
from aibridge_addon.records.pages import AnswerPage, PageAnswer, PageRequest
from aibridge_addon.telemetry.prometheus.internal_errors import ErrorCount
from aibridge_addon.telemetry.prometheus.listener import Listener, ListenError
from aibridge_addon.telemetry.prometheus.metrics import Metrics

FREE = "an address that is free, or null; without a file, mitmproxy's option aibridge_metrics=HOST:PORT or off"


def prometheus_sink(settings: Settings, whole: Ask) -> Sink | None:
    """None: metrics are off."""
    listen = settings.metrics.listen
    if listen is None:
        return None
    errors = ErrorCount()
    metrics = Metrics(settings.metrics, whole, providers=settings.providers, internal_errors=lambda: errors.count)
    return Prometheus(listen, metrics, whole, errors)


class Prometheus(Sink):
    def __init__(self, address: Listen, metrics: Metrics, whole: Ask, errors: ErrorCount) -> None:
        self._address = address
        self._metrics = metrics
        self._whole = whole
        self._errors = errors
        self._listener: Listener | None = None

    def start(self, before: Sink | None = None) -> None:
        """Raises ConfigError: the address cannot be listened on."""
        loop = asyncio.get_running_loop()
        logins = None if self.answer_page is None else partial(on_loop, loop, self.answer_page)
        listener = Listener(self._address, self._metrics.registry, ready=self._readiness, loop=loop, logins=logins)
        if isinstance(before, Prometheus) and before._listener is not None and before._address == self._address:
            listener.share(before._listener)
        try:
            listener.start()
        except ListenError as e:
            raise ConfigError([Problem("metrics.listen", str(e), FREE)]) from e
        self._listener = listener
        self.address = listener.address
        self._errors.start()

    def emit(self, records: Sequence[Record]) -> None:
        for record in records:
            self._metrics.emit(record)

    def retire(self) -> None:
        self.close(0)

    def close(self, timeout: float | None) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
            self._errors.stop()

    async def _readiness(self) -> tuple[bool, Mapping[str, Any]]:
        readiness = self._whole()
        return readiness.ready, readiness.details


async def on_loop(loop: asyncio.AbstractEventLoop, answer: AnswerPage, request: PageRequest) -> PageAnswer:
    """Answer a request on another event loop than the listener's own."""
    if loop.is_closed():
        raise RuntimeError("the event loop has been closed")
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_answered(answer, request), loop))


async def _answered(answer: AnswerPage, request: PageRequest) -> PageAnswer:
    return await answer(request)
