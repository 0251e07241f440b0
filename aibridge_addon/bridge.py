"""What one configuration makes: the parts that a running bridge consists of, and their life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.schema import Settings
from aibridge_addon.credentials.key_pool import KeyPool
from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.interception.actors import ActorResolver
from aibridge_addon.interception.breaker import Breakers
from aibridge_addon.interception.continuations import Continuations
from aibridge_addon.interception.in_flight import UnderWay
from aibridge_addon.interception.routing import Router
from aibridge_addon.messages_on_bedrock.signing import INSTALL, BotocoreMissing, Signer
from aibridge_addon.recording.recorder import Recorder
from aibridge_addon.recording.rows import RowBuilder
from aibridge_addon.recording.sqlite.reader import SqliteReader
from aibridge_addon.recording.sqlite.store import SqliteStore
from aibridge_addon.records import BreakerChanged, Record
from aibridge_addon.telemetry.dump.dumper import Dumper
from aibridge_addon.telemetry.prometheus.listener import Listener, ListenError
from aibridge_addon.telemetry.prometheus.metrics import Metrics

if TYPE_CHECKING:
    from aibridge_addon.tools.servers import Servers


DUMPS_TIMEOUT = 2.0
"""Seconds that the last dumps may take to be written at the end."""


def utc_now() -> datetime:
    """The clock of records and of what expires."""
    return datetime.now(UTC)


class Bridge:
    """Used on one event loop. `emit` hands a record to every sink; it never blocks and never raises."""

    def __init__(self, settings: Settings) -> None:
        """Put the parts together; nothing runs yet.

        Raises:
            ConfigError: the configuration asks for what there is not.
        """
        path = settings.database.sqlite_path
        if path is None:
            raise ConfigError([Problem("database", str(settings.database), "sqlite:///file in this version")])
        self.settings = settings
        self.router = Router(settings.providers)
        self.actors = ActorResolver(settings.actor)
        self.metrics = Metrics(settings.metrics)
        rows = RowBuilder(settings.recording, priced=self.metrics.priced)
        self.key_pools = {p.name: KeyPool(p.api_key, time.monotonic) for p in settings.providers if p.api_key}
        """The central keys of the providers that have any."""
        self.breakers = Breakers(time.monotonic, self._breaker_changed)
        self.recorder = Recorder(SqliteStore(path, rows, durable=settings.recording.durable))
        self.signers = _signers(settings)
        """By the name of the provider whose Messages requests go to Bedrock."""
        self.under_way = UnderWay()
        self.servers = _servers(settings)
        """The MCP servers whose tools are injected; None: there are none."""
        self.continuations = Continuations(SqliteReader(path), now=utc_now) if self.servers is not None else None
        """What interceptions with tools leave for later requests."""
        self.dumper = _dumper(settings)
        self.refuses_usage: set[str] = set()
        """Names of providers that refused to be asked for a chat stream's usage."""
        self._sinks: tuple[Callable[[Record], None], ...] = (self.metrics.emit, self.recorder.emit)
        self.ssl_insecure = False
        """mitmproxy was told to verify no upstream's certificate."""
        self.draining = False
        """A stop waits for the last answers: nothing new should come."""
        self._listener: Listener | None = None
        self.metrics.watch_recorder(lambda: self.recorder.depth, lambda: self.recorder.lost)

    def _breaker_changed(self, provider_name: str, route: str, model: str, state: float) -> None:
        self.emit(BreakerChanged(provider_name, route, model, state))

    def emit(self, record: Record) -> None:
        for sink in self._sinks:
            sink(record)

    def start(self) -> None:
        """Open what has to be there before the first request.

        Raises:
            ConfigError: the address for metrics is taken, or the folder for dumps cannot be used.
            DatabaseUnavailable: the database cannot be opened.
        """
        if self.dumper is not None:
            try:
                self.dumper.prepare()
            except OSError as e:
                raise ConfigError([Problem("dump_dir", str(e), "a folder that can be written to, or null")]) from e
        if self.settings.metrics.listen is not None:
            loop = asyncio.get_running_loop()
            listener = Listener(self.settings.metrics.listen, self.metrics.registry, ready=self._readiness, loop=loop)
            try:
                listener.start()
            except ListenError as e:
                raise ConfigError([Problem("metrics.listen", str(e), "an address that is free, or null")]) from e
            self._listener = listener
        if self.servers is not None:
            self.servers.start()
        try:
            self.recorder.start()
        except BaseException:
            self._stop_listening()
            raise

    def _readiness(self) -> tuple[bool, dict[str, Any]]:
        """For `/readyz`; asked on another thread."""
        recorded = self.recorder.available or self.settings.recording.on_failure == "open"
        return recorded and not self.draining, {
            "database": "available" if self.recorder.available else "unavailable",
            "draining": self.draining,
            "ssl_insecure": self.ssl_insecure,
        }

    def retire(self) -> None:
        """Another bridge takes over: what is under way ends here, with the recorder that it began with."""
        self._stop_listening()
        self.under_way.when_none(self._end_retirement)

    def _end_retirement(self) -> None:
        self.recorder.retire()
        if self.dumper is not None:
            self.dumper.close(0)
        if self.servers is not None:
            self._closing = asyncio.ensure_future(self.servers.close())

    def close_now(self, timeout: float) -> None:
        """End, blocking for at most `timeout` seconds."""
        self._stop_listening()
        self.under_way.cut_off()
        if self.servers is not None:
            self.servers.kill()
        self.recorder.close(timeout)
        if self.dumper is not None:
            self.dumper.close(DUMPS_TIMEOUT)

    async def close(self, timeout: float) -> None:
        """End, without blocking the loop."""
        if self.servers is not None:
            await self.servers.close()
        if self.continuations is not None:
            await self.continuations.close()
        await self.recorder.drain(timeout)
        if self.dumper is not None:
            await asyncio.to_thread(self.dumper.close, DUMPS_TIMEOUT)
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.stop()
            self._listener = None


def _dumper(settings: Settings) -> Dumper | None:
    if settings.dump_dir is None:
        return None
    redact = Redactor(settings.recording.redact).encoded
    return Dumper(settings.dump_dir, redact=redact, limit=settings.limits.decoded_body)


def _signers(settings: Settings) -> dict[str, Signer]:
    signers = {}
    for number, provider in enumerate(settings.providers):
        if provider.bedrock is not None:
            try:
                signers[provider.name] = Signer(provider.bedrock)
            except BotocoreMissing as e:
                key = f"providers[{number}].bedrock"
                raise ConfigError([Problem(key, "botocore is not installed", f"what needs it: {INSTALL}")]) from e
    return signers


def _servers(settings: Settings) -> Servers | None:
    if not settings.mcp.servers:
        return None
    # The MCP library takes a second to import: only those pay for it who use it.
    from aibridge_addon.tools.servers import Servers

    return Servers(settings.mcp.servers)
