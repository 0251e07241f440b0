"""Comments and markers on flows in the interactive tools: model, tokens, cost, or the error.

A flow of HTTP is one interception. A WebSocket has many, also at once: its comment shows their sums, and changes at the
end of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mitmproxy import http

from aibridge_addon.bridge import Bridge
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.records import InterceptionEnded, Record, TokenUsage, ToolUsage
from aibridge_addon.wire.printable import printable

DONE = ":robot:"
FAILED = ":warning:"
MAX_COMMENT = 500
"""Characters."""


@dataclass(slots=True)
class _Sums:
    """What the interceptions of a flow that have ended add up to."""

    requests: int = 0
    failed: int = 0
    usages: int = 0
    priced: int = 0
    """Usages with a cost."""
    new: int = 0
    cached: int = 0
    output: int = 0
    cost: float = 0.0
    injected: int = 0
    turns: int = 0
    error: str = ""
    """Of the last interception that failed."""
    model: str = ""
    """Of the last interception that names one."""

    def add(self, usage: TokenUsage) -> None:
        self.usages += 1
        self.new += usage.input_tokens
        self.cached += usage.cache_read_input_tokens + usage.cache_write_input_tokens
        self.output += usage.output_tokens
        if usage.cost_usd is not None:
            self.priced += 1
            self.cost += float(usage.cost_usd)

    def end(self, ended: InterceptionEnded) -> None:
        self.requests += 1
        self.turns += ended.turns
        self.model = ended.model or self.model
        if ended.status == "failed":
            self.failed += 1
            self.error = f"{ended.error_type}: {ended.error_message or ''}"

    def __str__(self) -> str:
        parts = [self.error]
        if self.requests > 1:
            parts.append(f"{self.requests:,} requests" + (f", {self.failed:,} failed" if self.failed else ""))
        parts.append(self.model)
        if self.usages:
            parts.append(f"{self.new:,} in, {self.cached:,} cached, {self.output:,} out")
            parts.append(f"${self.cost:.4f}" if self.priced == self.usages else "cost n/a")
        if self.injected:
            parts.append(f"{self.injected} injected calls in {self.turns} turns")
        return " · ".join(filter(None, parts))


@dataclass(slots=True)
class Annotation:
    """Comments on a flow from the records of its interceptions, which it reads as they are emitted."""

    flow: http.HTTPFlow
    _sums: _Sums = field(default_factory=_Sums)

    def follow(self, exchange: Exchange, bridge: Bridge) -> None:
        """Read the records of an interception. Call it before they are emitted."""
        emit = exchange.emit
        usages: list[TokenUsage] = []
        injected = 0

        def take(record: Record) -> None:
            nonlocal injected
            emit(record)
            match record:
                case TokenUsage():
                    usages.append(record)
                case ToolUsage(injected=True):
                    injected += 1
                case InterceptionEnded():
                    for usage in usages:
                        self._sums.add(bridge.priced(usage))
                    self._sums.injected += injected
                    self._sums.end(record)
                    self._show()

        exchange.emit = take

    def _show(self) -> None:
        self.flow.comment = printable(str(self._sums))[:MAX_COMMENT]
        self.flow.marked = FAILED if self._sums.failed else DONE
