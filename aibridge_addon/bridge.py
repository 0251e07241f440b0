"""One bridge for each loaded configuration: its parts, and their start and end."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aibridge_addon.config.errors import ConfigError, Problem
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.system_user import operating_system_user
from aibridge_addon.credentials.key_pool import KeyPool
from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.dialects.chat_completions.usage import UsageRefusals
from aibridge_addon.interception.accounts import Sums
from aibridge_addon.interception.actors import ActorResolver
from aibridge_addon.interception.breaker import Breakers, State
from aibridge_addon.interception.budgets import Budgets
from aibridge_addon.interception.buffers import Buffers
from aibridge_addon.interception.continuations import Continuations
from aibridge_addon.interception.in_flight import InFlight
from aibridge_addon.interception.plan_limits import PlanLimits
from aibridge_addon.interception.refused_tools import RefusedTools
from aibridge_addon.interception.routing import Router
from aibridge_addon.interception.tool_access import ToolAccess
from aibridge_addon.messages_on_bedrock.signing import INSTALL, BotocoreMissing, Signer
from aibridge_addon.recording.budgets import BudgetSink, BudgetSync
from aibridge_addon.recording.database import (
    budget_store,
    continuation_reader,
    database_sink,
    mcp_logins,
    pruner,
    result_ledger,
    token_cache,
    tool_pins,
)
from aibridge_addon.recording.mcp_logins import McpLogins
from aibridge_addon.recording.preparation import Preparation
from aibridge_addon.recording.stream import RecordStream
from aibridge_addon.recording.tool_pins import ToolPins
from aibridge_addon.records import (
    Ask,
    BreakerChanged,
    DatabaseUnavailable,
    Readiness,
    ServerState,
    Sink,
    ToolServerConnected,
    utc_now,
)
from aibridge_addon.records.memory import Memory
from aibridge_addon.telemetry.dump.dumper import Dumper
from aibridge_addon.telemetry.log.redaction import RedactedLog
from aibridge_addon.telemetry.log.sink import log_sink
from aibridge_addon.telemetry.prometheus.sink import prometheus_sink
from aibridge_addon.telemetry.tracing.sink import trace_contexts, tracing_sink

if TYPE_CHECKING:
    from aibridge_addon.tools.oauth.logins import Logins
    from aibridge_addon.tools.servers import Servers

logger = logging.getLogger(__name__)

MakeSink = Callable[[Settings, Ask], Sink | None]

SINKS: Sequence[MakeSink] = (database_sink, prometheus_sink, log_sink, tracing_sink)
"""The table of sinks, in the order of their start. An entry returns None if the configuration turns its sink off."""
SIDE_TIMEOUT = 2.0
"""Seconds. Maximum time for the end of a part without records: the last dumps, reservations, a deletion of old rows."""


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Part:
    """Something that starts and ends with the bridge. It may be closed before its start, and more than once."""

    close_now: Callable[[float | None], None]
    """End within the given number of seconds, blocking. None: end in the background."""
    open: Callable[[], None] = _nothing
    """Do what takes time or may fail without the event loop, such as opening a database. Called on any thread."""
    start: Callable[[Bridge | None], None] = _nothing
    """Begin, on the event loop. It gets the bridge that is going to be replaced."""
    serve: Callable[[], None] = _nothing
    """Begin what must not outlive a start that fails, such as programs. The ports are open."""
    retire: Callable[[], None] = _nothing
    """Release what the next bridge needs, such as a port. Requests under way still use this part."""
    close_gently: Callable[[float | None], Awaitable[None]] | None = None
    """End without blocking the event loop. None: `close_now` runs in a thread."""

    async def close(self, timeout: float | None) -> None:
        if self.close_gently is not None:
            await self.close_gently(timeout)
        elif timeout is None:
            self.close_now(None)
        else:
            await asyncio.to_thread(self.close_now, timeout)


@contextmanager
def _logged(part: Part) -> Iterator[None]:
    """Log an exception of a part's end: the parts after it, the record stream last, have to end all the same."""
    try:
        yield
    except Exception:
        logger.exception("aibridge: %s cannot be closed", part)


@dataclass(frozen=True, slots=True)
class SharedBudgets:
    accounts: Budgets
    sync: BudgetSync[Sums]
    """Keeps the accounts up to date with other processes."""


class Bridge:
    """Used on one event loop."""

    def __init__(self, settings: Settings, sinks: Sequence[MakeSink] = SINKS) -> None:
        """Create the parts without starting them.

        Raises:
            ConfigError: the configuration needs something that is missing.
        """
        self.settings = settings
        self.router = Router(settings.providers)
        self.actors = ActorResolver(settings.actor, system_user=operating_system_user())
        self.key_pools = {p.name: KeyPool(p.api_key, time.monotonic) for p in settings.providers if p.api_key}
        """The central keys of the providers that have any."""
        self.breakers = Breakers(time.monotonic, self._breaker_changed)
        self.signers = _signers(settings)
        """By provider name, for providers whose Messages requests go to Bedrock."""
        self.in_flight = InFlight()
        memory = Memory(settings.limits.buffered)
        self.buffers = Buffers(memory)
        """The bytes of requests and answers in memory."""
        self.traces = trace_contexts(settings)
        """Returns the trace context of an interception, for tool servers. None: traces are off."""
        self.served_at: Callable[[], str] = lambda: self.address
        """Return where the pages of this process are to be had, as host and port: a supervisor may serve them."""
        self.is_exposed = False
        """Whether other machines can reach the proxy."""
        self.accepts_any_user = False
        """Whether mitmproxy accepts every name with every password (`--proxyauth any`)."""
        self._mcp_logins = mcp_logins(settings) if settings.mcp.logins else None
        logins = self._logins(self._mcp_logins) if self._mcp_logins is not None else None
        self._tool_pins = tool_pins(settings) if any(s.pin for s in settings.mcp.servers.values()) else None
        self.servers = _servers(
            settings, self._tool_server_connected if self.traces is not None else None, self._tool_pins, logins
        )
        """The MCP servers whose tools are injected. None: none are configured."""
        self.tool_access = ToolAccess({name: server.actors for name, server in settings.mcp.servers.items()})
        self.continuations = (
            Continuations(
                continuation_reader(settings), now=utc_now, on_too_large=_log_too_large, on_unreadable=_log_unreadable
            )
            if self.servers is not None
            else None
        )
        """State that interceptions with tools keep for later requests. None without MCP servers."""
        self.ledger = result_ledger(settings)
        """What is known of results that are fetched later: background responses and batches."""
        self._pruner = pruner(settings)
        """Deletes what is older than `recording.retention`."""
        self.tokens = token_cache(settings)
        """Checks tokens of the bridge, with which clients authenticate."""
        self.dumper = _dumper(settings)
        self.refuses_usage = UsageRefusals()
        """The models that refused `stream_options.include_usage`."""
        self.refused_tools = RefusedTools(time.monotonic)
        """The injected tools that providers refused."""
        self.ssl_insecure = False
        """Whether mitmproxy's option turns the verification of upstream certificates off."""
        self.reads_websockets = True
        """Whether mitmproxy's option `websocket` is on. Without it, messages would pass unread."""
        self.lost_elsewhere: Callable[[], int] = lambda: 0
        """Return the number of records that other bridges of this process have lost. Called on any thread."""
        self.draining = False
        """Whether a stop waits for the last answers. `/readyz` then reports that no new request should come."""
        self.refusing = False
        """Whether a stop has waited for the last answers: rows of further requests would be lost."""
        self.listening = False
        """Whether the proxy's ports are open. Until then, `/readyz` reports that no request can come."""
        self._sinks = [sink for make in sinks if (sink := make(settings, self._readiness)) is not None]
        if logins is not None:
            self._serve_logins(logins)
        self.instance_id = next((sink.instance_id for sink in self._sinks if sink.instance_id), str(uuid.uuid4()))
        """The id under which rows of this bridge are written."""
        self._log = RedactedLog(Redactor(settings.recording.redact).text)
        preparation = Preparation(settings.recording)
        self.priced = preparation.priced
        """Return a token row with its cost."""
        self.is_never_priced = preparation.is_never_priced
        """Return whether no answer to a request has a price."""
        self.budgets = self._budgets(preparation.recorded_name) if settings.budgets else None
        """What requests may use. None: no budgets are configured."""
        self.stream = RecordStream(self._sinks, preparation, load=preparation.load)
        self.stream.count_in(memory)
        self.emit = self.stream.emit
        """Send a record to every sink. Never blocks and never raises."""
        self.plan_limits = PlanLimits(self.emit)
        """Records what providers say about the limits of plans, when it has changed."""
        self.committed = self.stream.committed
        """Wait until everything emitted so far is in the database. Returns False if that fails or takes too long."""
        self._parts = self._ordered_parts()
        self._opened = False
        self._ending: asyncio.Future[None] | None = None
        self._closed = False
        """Whether `close` has waited for every part: what has not ended by then is not waited for again."""

    def _logins(self, database: McpLogins) -> Logins:
        from aibridge_addon.tools.oauth.logins import Logins

        settings = self.settings
        return Logins.made(database, settings.mcp, settings.egress, lambda: self.served_at())

    def _serve_logins(self, logins: Logins) -> None:
        from aibridge_addon.tools.oauth.pages import LoginPages

        pages = LoginPages(logins)
        for sink in self._sinks:
            sink.answer_page = pages.answer

    def count_in(self, memory: Memory) -> None:
        """Share a budget for what is in memory with other bridges of the process. Call it before the start."""
        self.buffers.count_in(memory)
        self.stream.count_in(memory)

    def _budgets(self, recorded_name: Callable[[str], str]) -> SharedBudgets:
        settings = self.settings
        accounts = Budgets(
            settings.budgets,
            self.actors.groups_of,
            now=utc_now,
            emit=lambda record: self.emit(record),
            warn=_log_budget,
            recorded_name=recorded_name,
        )
        store = budget_store(settings, self.instance_id)
        self._sinks.append(BudgetSink(accounts))
        return SharedBudgets(accounts, BudgetSync(accounts, store, groups=accounts.counts_groups, now=utc_now))

    def _ordered_parts(self) -> Sequence[Part]:
        """Return the parts in the order of their start.

        They end in reverse order, so the record stream still writes the last records of the others.
        """
        stream, log = self.stream, self._log
        parts = [
            Part(lambda _: log.stop(lambda: stream.ended), open=log.start),
            Part(
                stream.close,
                open=stream.open,
                start=lambda before: stream.start(before.stream if before is not None else None),
                retire=stream.retire,
                close_gently=stream.drain,
            ),
            Part(lambda _: self.ledger.close()),
            Part(lambda _: self.tokens.close()),
            Part(
                lambda timeout: self._pruner.close(_side(timeout)), serve=self._pruner.start, retire=self._pruner.stop
            ),
        ]
        if (budgets := self.budgets) is not None:
            sync = budgets.sync
            parts.append(Part(lambda timeout: sync.close(_side(timeout)), open=sync.open, start=lambda _: sync.start()))
        if (continuations := self.continuations) is not None:
            parts.append(Part(lambda _: continuations.close()))
        if (dumper := self.dumper) is not None:
            parts.append(Part(lambda timeout: dumper.close(_side(timeout)), open=dumper.start))
        if (pins := self._tool_pins) is not None:
            parts.append(Part(lambda _: pins.close()))
        if (database := self._mcp_logins) is not None:
            parts.append(Part(lambda _: database.close()))
        if (servers := self.servers) is not None:
            parts.append(
                Part(
                    lambda _: servers.kill(),
                    start=lambda before: servers.replace(before.servers if before is not None else None),
                    serve=servers.start,
                    close_gently=lambda timeout: servers.close(linger=timeout is None),
                )
            )
        return parts

    def _tool_server_connected(self, record: ToolServerConnected) -> None:
        self.emit(record)

    def _breaker_changed(
        self, provider_name: str, host: str, route: str, model: str, before: State, after: State
    ) -> None:
        text = "circuit breaker of %s, %s, %s, %r: %s, was %s"
        logger.warning(text, provider_name, host, route, model, after.name, before.name)
        if after is State.OPEN or self.breakers.worst(provider_name, route, model) is after:
            self.emit(BreakerChanged(provider_name, route, model, after.value))

    def _readiness(self) -> Readiness:
        """Combine the states of all sinks. May be called on any thread."""
        sinks = [sink.readiness() for sink in self._sinks]
        servers = self.servers.states() if self.servers is not None else ()
        away = [server for server in servers if not server.is_up]
        degraded = (
            *(name for sink in sinks for name in sink.degraded),
            *(f"mcp.servers.{server.name}" for server in away),
        )
        is_served = not any(server.required for server in away)
        return Readiness(
            ready=all(sink.ready for sink in sinks) and is_served and self.listening and not self.draining,
            details={
                **{name: detail for sink in sinks for name, detail in sink.details.items()},
                "degraded": degraded,
                **({"mcp_servers": {server.name: _state(server) for server in servers}} if servers else {}),
                "listening": self.listening,
                "draining": self.draining,
                "ssl_insecure": self.ssl_insecure,
            },
            waiting=self.stream.depth,
            buffered_bytes=self.buffers.used,
            lost=self.stream.lost + self.lost_elsewhere(),
            spooled_bytes=sum(sink.spooled_bytes for sink in sinks),
            lost_spans=sum(sink.lost_spans for sink in sinks),
            expired=self._pruner.backlog,
            degraded=degraded,
            key_pools=tuple(pool.state(name) for name, pool in self.key_pools.items()),
            servers=servers,
        )

    # --- life -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Do what takes time before the start. Blocks, and may be called on any thread.

        Raises:
            ConfigError: the folder for dumps or for the spool cannot be used.
            DatabaseUnavailable: the database cannot be opened.
        """
        self._opened = True
        for part in self._parts:
            part.open()
        self.stream.wait_until_loaded()  # once the port is open, nothing may block the event loop

    def start(self, before: Bridge | None = None) -> None:
        """Start all parts, and open them before if `open` was not called. If one fails, all are closed again.

        `before`: the bridge that this one is going to replace. It stays in use if this one cannot start.

        Raises:
            ConfigError: the address for metrics is in use, or what `open` raises.
            DatabaseUnavailable: the database cannot be opened.
        """
        try:
            if not self._opened:
                self.open()
            for part in self._parts:
                part.start(before)
        except BaseException:
            self.close_now(0)
            raise

    def serve(self) -> None:
        """The ports are open: requests may come."""
        self.listening = True
        for part in self._parts:
            part.serve()

    @property
    def address(self) -> str:
        """Where metrics are served, as host and port. Empty: nowhere."""
        return next((sink.address for sink in self._sinks if sink.address), "")

    @property
    def ended(self) -> bool:
        """Whether this bridge was retired and has ended completely."""
        return self._ending is not None and self._ending.done() and self.stream.ended

    def retire(self) -> None:
        """Make way for another bridge. Requests under way end with this one and its sinks."""
        for part in reversed(self._parts):
            part.retire()
        self.in_flight.when_empty(self._end)

    def _end(self) -> None:
        """Write the last records in the background, without a time limit."""
        if self._ending is None:
            self._ending = asyncio.ensure_future(self.close(None))

    async def close(self, timeout: float | None) -> None:
        """End without blocking the event loop. None: do not wait until the last records are written."""
        for part in reversed(self._parts):
            with _logged(part):
                await part.close(timeout)
        self._closed = timeout is not None

    def close_now(self, timeout: float) -> None:
        """End, and block for at most `timeout` seconds for each part. Does nothing after `close` with a time limit."""
        if self._closed:
            return
        self.in_flight.cut_off()
        for part in reversed(self._parts):
            with _logged(part):
                part.close_now(timeout)


def _state(server: ServerState) -> dict[str, Any]:
    problem = {"problem": server.problem} if server.problem else {}
    return {
        "up": server.is_up,
        "required": server.required,
        "tools": server.tools,
        "left_out": server.left_out,
        **({"logged_in": server.logged_in} if server.logged_in is not None else {}),
        **problem,
    }


def _side(timeout: float | None) -> float | None:
    return None if timeout is None else min(timeout, SIDE_TIMEOUT)


def _log_too_large(size: int) -> None:
    logger.warning("tool results are too large to be kept for the client's next request: bytes=%d", size)


def _log_unreadable(error: DatabaseUnavailable) -> None:
    logger.error("kept turns cannot be read, continuing without them: %s", error)


def _log_budget(event: str, state: str) -> None:
    logger.warning("budget %s: %s", event, state)


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


def _servers(
    settings: Settings,
    on_connected: Callable[[ToolServerConnected], None] | None,
    pins: ToolPins | None,
    logins: Logins | None,
) -> Servers | None:
    if not settings.mcp.servers:
        return None
    # The MCP library takes a second to import, so it is imported only where MCP servers are configured.
    from aibridge_addon.tools.servers import Servers

    mcp = settings.mcp
    return Servers(
        mcp.servers,
        on_connected=on_connected,
        actor_connections=mcp.actor_connections,
        actor_idle=mcp.actor_idle,
        pinned=pins.pinned if pins is not None else None,
        logins=logins,
    )
