"""Count records, for Prometheus. `docs/metrics.md` explains every metric.

    emit(record) ─▶ families (label values → child of a prometheus-client metric) ─▶ collect() ─▶ the listener's thread

Clients choose many label values, so labels and metrics are bounded:

- A label that clients choose keeps its first values (`MODELS` and so on). Further values count as `other`.
- A metric keeps its first `MAX_SERIES` label sets. In further ones, every label that clients choose is `other`.

Totals stay exact. The comment above each metric has its largest number of label sets, for P providers, R routes and S
MCP servers.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric

from aibridge_addon import records
from aibridge_addon.config import schema
from aibridge_addon.config.providers import Provider
from aibridge_addon.telemetry.labels import OTHER, UNKNOWN, Bounded
from aibridge_addon.telemetry.prometheus import families
from aibridge_addon.telemetry.prometheus.families import Family, Labels
from aibridge_addon.telemetry.prometheus.plan_limits import PlanLimitGauge
from aibridge_addon.telemetry.prometheus.states import collected

logger = logging.getLogger(__name__)

MODELS = 200
INITIATORS = 1_000
CLIENTS = 50
TOOLS = 500
TOKEN_TYPES = 64
MAX_OPEN = 50_000
"""Interceptions in progress that are remembered: far more than one process can serve."""
MAX_COUNT = 1e15
"""A larger count of tokens is ignored as wrong. Floats count exactly up to 9e15."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
OPEN = 1.0
"""State of a breaker that rejects requests."""

# Upper bounds of buckets, in seconds.
DURATIONS = (0.5, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0)
FIRST_BYTES = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
CALL_DURATIONS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
OVERHEADS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
KEYS = (1, 2, 3, 4, 5, 10, 25)
"""Upper bounds of buckets, in keys."""


class Metrics:
    """Counts records; methods may be called on any thread."""

    def __init__(
        self,
        settings: schema.Metrics,
        whole: records.Ask = records.Readiness,
        *,
        providers: Sequence[Provider] = (),
        internal_errors: Callable[[], int] = int,
    ) -> None:
        """`whole` and `internal_errors` are called at every scrape."""
        self.registry = CollectorRegistry()
        self._open: OrderedDict[str, _Begun] = OrderedDict()
        self._whole = whole
        self._providers = providers
        self._internal_errors = internal_errors
        self._has_failed = False
        self._names_initiators = settings.initiator_label
        self._prefix = settings.prefix
        self._families: list[Family[Counter] | Family[Gauge] | Family[Histogram]] = []

        self._model = Bounded(MODELS)
        self._initiator = Bounded(INITIATORS)
        self._subject = Bounded(INITIATORS)
        self._client = Bounded(CLIENTS)
        self._tool = Bounded(TOOLS)
        self._server = Bounded(TOOLS)
        self._token_type = Bounded(TOKEN_TYPES)

        who = ("initiator_id", "client") if settings.initiator_label else ("client",)
        self._unseen = _Begun(UNKNOWN, UNKNOWN, UNKNOWN, (UNKNOWN,) * len(who), None)
        # At most MAX_SERIES + 2·P·R
        interception = ("provider", "model", "status", "route", "method", *who)
        self._interceptions = self._counter("interceptions_total", "Interceptions that ended.", interception)
        # 202·P·R, at most MAX_SERIES + P·R
        self._inflight = self._gauge(
            "interceptions_inflight", "Interceptions under way.", ("provider", "model", "route")
        )
        # 20·P·R
        self._passthroughs = self._counter(
            "passthrough_total", "Requests not bridged.", ("provider", "route", "method", "billable")
        )
        # At most MAX_SERIES + P
        self._prompts = self._counter("prompts_total", "Prompts that a person wrote.", ("provider", "model", *who))
        # At most MAX_SERIES + 70·P
        self._tokens = self._counter("tokens_total", "Tokens; types overlap.", ("provider", "model", "type", *who))
        # At most MAX_SERIES + P·S
        ran = ("provider", "model", "server", "name")
        self._injected = self._counter("injected_tool_invocations_total", "Calls of tools that the bridge ran.", ran)
        # S, 9·S, and S histograms of 12 series
        self._calls = self._counter("mcp_calls_total", "Calls of the tools of an MCP server.", ("server",))
        self._call_errors = self._counter(
            "mcp_call_errors_total", "Calls that have failed, by kind.", ("server", "kind")
        )
        self._call_durations = self._histogram(
            "mcp_call_duration_seconds", "Duration of calls.", ("server",), CALL_DURATIONS
        )
        # At most MAX_SERIES + P
        chose = ("provider", "model", "name")
        self._selected = self._counter("non_injected_tool_selections_total", "Calls of the client's own tools.", chose)
        # Each 202·P·R, at most MAX_SERIES + P·R
        breaker = ("provider", "endpoint", "model")
        self._state = self._gauge("circuit_breaker_state", "0 closed, 0.5 half-open, 1 open.", breaker)
        self._trips = self._counter("circuit_breaker_trips_total", "Times that a breaker opened.", breaker)
        self._rejects = self._counter("circuit_breaker_rejects_total", "Requests that a breaker rejected.", breaker)
        # At most MAX_SERIES + P
        self._costs = self._counter(
            "cost_usd_total", "Price in US dollars of the tokens that have one.", ("provider", "model", *who)
        )
        # 2·P each, and P histograms of 9 series
        pool = ("provider", "reason")
        self._refused_keys = self._counter("key_pool_state_transitions_total", "Central keys that were refused.", pool)
        self._exhaustions = self._counter(
            "key_pool_exhaustions_total", "Requests refused because no central key was left.", ("provider", "outcome")
        )
        self._failovers = self._histogram(
            "key_pool_failover_attempts", "Central keys tried for a turn.", ("provider",), KEYS
        )
        # 4·P·R
        attempt = ("provider", "route", "step")
        self._attempts = self._counter("upstream_attempts_total", "Requests sent upstream, and what followed.", attempt)
        # Each 202·P, at most MAX_SERIES + P
        model = ("provider", "model")
        self._unpriced = self._counter("unpriced_token_usages_total", "Token rows without a known price.", model)
        # Each 202·P, at most MAX_HISTOGRAMS + P; 10 and 12 series each
        self._durations = self._histogram("interceptions_duration_seconds", "To the answer's end.", model, DURATIONS)
        self._first_bytes = self._histogram("time_to_first_byte_seconds", "To the first byte.", model, FIRST_BYTES)
        # P; 13 series each
        self._overheads = self._histogram("overhead_seconds", "Our own share.", ("provider",), OVERHEADS)
        # As many as there are reasons
        self._refused = self._counter("refused_total", "Requests refused by a rule.", ("reason",))
        # As many as there are limits
        self._unread = self._counter("unread_total", "Requests and answers not read because of a limit.", ("limit",))
        # INITIATORS for each budget, at most MAX_SERIES
        used = ("name", "subject")
        self._budgets = self._gauge("budget_used_ratio", "Share of a budget's limit that was spent.", used)
        # P·WINDOWS
        self._plan_limits = PlanLimitGauge(settings.prefix + "plan_limit_used_ratio")
        # 1
        self._tunnels = self._counter("tunnels_total", "Connections to other hosts, never decrypted.", ())
        self._tunnels[()].inc(0)
        self._begin_key_pools()
        self.registry.register(self)

    def _begin_key_pools(self) -> None:
        """Show zeros from the start. Prometheus sees no increase in a series that begins with its first refusal."""
        for provider in self._providers:
            for reason in ("rate_limited", "unauthorized") if provider.api_key else ():
                self._refused_keys[provider.name, reason].inc(0)
                self._exhaustions[provider.name, reason].inc(0)

    # --- the record stream ------------------------------------------------------------------------------------

    def emit(self, record: records.Record) -> None:
        """Count a record. Never blocks, never raises."""
        try:
            self._count(record)
        except Exception:
            if not self._has_failed:  # log once: the next records may fail the same way
                self._has_failed = True
                logger.exception("aibridge: a %s cannot be counted", type(record).__name__)

    def _count(self, record: records.Record) -> None:
        match record:
            case records.TokenUsage():
                self._count_tokens(record)
            case records.InterceptionStarted():
                self._begin(record)
            case records.InterceptionEnded():
                self._end(record)
            case records.ToolUsage():
                self._count_tool(record)
            case records.UserPrompt():
                if record.prompt != "":  # None: the text is not recorded, but the prompt counts
                    begun = self._open.get(record.interception_id, self._unseen)
                    self._prompts[begun.provider, begun.model, *begun.who].inc()
            case records.Passthrough():
                method = record.method if record.method in METHODS else OTHER
                billable = "true" if record.billable else "false"
                self._passthroughs[record.provider_name, record.route, method, billable].inc()
            case records.FirstByte():
                self._first_bytes[record.provider_name, self._model(record.model)].observe(record.seconds)
            case records.Overhead():
                self._overheads[record.provider_name,].observe(record.seconds)
            case records.UpstreamAttempt():
                self._count_attempt(record)
            case records.KeysExhausted():
                self._exhaustions[record.provider_name, record.outcome].inc()
            case records.BreakerChanged():
                labels = (record.provider_name, record.route, self._model(record.model))
                self._state[labels].set(record.state)
                if record.state == OPEN:
                    self._trips[labels].inc()
            case records.BreakerRejected():
                self._rejects[record.provider_name, record.route, self._model(record.model)].inc()
            case records.Refused() | records.ConnectionRefused():
                self._refused[record.reason,].inc()
            case records.LeftUnread():
                self._unread[record.limit,].inc()
            case records.BudgetUsed():
                if self._names_initiators or not record.names_actor:
                    self._budgets[record.name, self._subject(record.subject)].set(record.ratio)
            case records.PlanLimit():
                self._plan_limits.set(record)
            case records.Tunnelled():
                self._tunnels[()].inc()

    def _begin(self, record: records.InterceptionStarted) -> None:
        client = self._client(record.client)
        who = (self._initiator(record.initiator_id), client) if self._names_initiators else (client,)
        begun = _Begun(record.provider_name, self._model(record.model), record.route, who, record.started_at)
        if len(self._open) >= MAX_OPEN:
            _, forgotten = self._open.popitem(last=False)
            self._inflight[forgotten.place].inc(-1)
        self._open[record.id] = begun
        self._inflight[begun.place].inc()

    def _end(self, record: records.InterceptionEnded) -> None:
        begun = self._open.pop(record.interception_id, None) or self._unseen
        model = self._model_of(begun, record.model)
        if begun.started_at is not None:
            self._inflight[begun.place].inc(-1)
            seconds = (record.ended_at - begun.started_at).total_seconds()
            self._durations[begun.provider, model].observe(max(0.0, seconds))
        # Bridged routes have no other method.
        self._interceptions[begun.provider, model, record.status, begun.route, "POST", *begun.who].inc()

    def _count_tokens(self, record: records.TokenUsage) -> None:
        begun = self._open.get(record.interception_id, self._unseen)
        provider, model, who = begun.provider, self._model_of(begun, record.model), begun.who
        counts = {
            "input": record.input_tokens,
            "output": record.output_tokens,
            "cache_read_input_tokens": record.cache_read_input_tokens,
            "cache_write_input_tokens": record.cache_write_input_tokens,
        }
        for kind, count in counts.items():
            if 0 <= count <= MAX_COUNT:
                series = self._tokens[provider, model, kind, *who]  # also shown if it is 0
                if count:
                    series.inc(count)
        for kind, value in islice(record.extra.items(), TOKEN_TYPES):
            # The provider chooses names and values. A bool is an int, too. NaN fails the comparison.
            if kind not in counts and type(value) in (int, float) and 0 <= value <= MAX_COUNT:
                self._tokens[provider, model, self._token_type(kind), *who].inc(value)
        answered = (record.provider_name, self._model(record.model))
        if record.cost_usd is None:
            self._unpriced[answered].inc()
        elif 0 <= record.cost_usd <= MAX_COUNT:
            self._costs[*answered, *who].inc(record.cost_usd)

    def _count_attempt(self, record: records.UpstreamAttempt) -> None:
        self._attempts[record.provider_name, record.route, record.step].inc()
        if record.refused_key is not None:
            self._refused_keys[record.provider_name, record.refused_key].inc()
        if record.keys_tried is not None:
            self._failovers[record.provider_name,].observe(record.keys_tried)

    def _count_tool(self, record: records.ToolUsage) -> None:
        begun = self._open.get(record.interception_id, self._unseen)
        name = self._tool(record.tool)
        if record.injected:
            server = self._server(record.server_url or record.server_name or UNKNOWN)
            self._injected[begun.provider, begun.model, server, name].inc()
            if record.server_name is not None:
                self._count_call(self._server(record.server_name), record)
        else:
            self._selected[begun.provider, begun.model, name].inc()

    def _count_call(self, server: str, record: records.ToolUsage) -> None:
        self._calls[server,].inc()
        if (kind := record.metadata.get("error_kind")) is not None:
            self._call_errors[server, kind].inc()
        if record.duration_ms is not None:
            self._call_durations[server,].observe(record.duration_ms / 1000)

    def _model_of(self, begun: _Begun, answered: str | None) -> str:
        """Return the model that the request names. If it names none, the model that answered."""
        return begun.model if begun.model != UNKNOWN or not answered else self._model(answered)

    # --- a scrape ---------------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """Implement prometheus-client's `Collector`."""
        for family in self._families:
            yield family.collect()
        yield self._plan_limits.collect()
        yield from collected(self._prefix, self._whole(), self._providers, self._internal_errors())

    def _counter(self, name: str, text: str, labels: Labels) -> Family[Counter]:
        return self._kept(families.counter(self._prefix + name, text, labels))

    def _gauge(self, name: str, text: str, labels: Labels) -> Family[Gauge]:
        return self._kept(families.gauge(self._prefix + name, text, labels))

    def _histogram(self, name: str, text: str, labels: Labels, buckets: Sequence[float]) -> Family[Histogram]:
        return self._kept(families.histogram(self._prefix + name, text, labels, buckets))

    def _kept[F: Family[Counter] | Family[Gauge] | Family[Histogram]](self, family: F) -> F:
        self._families.append(family)
        return family


@dataclass(frozen=True, slots=True)
class _Begun:
    """Labels of an interception in progress."""

    provider: str
    model: str
    route: str
    who: Labels
    started_at: datetime | None

    @property
    def place(self) -> Labels:
        return (self.provider, self.model, self.route)
