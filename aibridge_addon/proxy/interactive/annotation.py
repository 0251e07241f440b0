"""Comments and markers on flows in the interactive tools: model, tokens, cost, or the error."""

from __future__ import annotations

from mitmproxy import http

from aibridge_addon.bridge import Bridge
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.records import InterceptionEnded, Record, TokenUsage, ToolUsage
from aibridge_addon.wire.printable import printable

DONE = ":robot:"
FAILED = ":warning:"
MAX_COMMENT = 500
"""Characters."""


class Annotation:
    """Reads the records of one interception as they are emitted, and comments on its flow at the end."""

    def __init__(self, flow: http.HTTPFlow, exchange: Exchange, bridge: Bridge) -> None:
        self._flow = flow
        self._bridge = bridge
        self._usages: list[TokenUsage] = []
        self._injected = 0
        self._emit, exchange.emit = exchange.emit, self._take

    def _take(self, record: Record) -> None:
        self._emit(record)
        match record:
            case TokenUsage():
                self._usages.append(record)
            case ToolUsage(injected=True):
                self._injected += 1
            case InterceptionEnded():
                self._flow.comment = printable(self._text(record))[:MAX_COMMENT]
                self._flow.marked = DONE if record.status == "completed" else FAILED

    def _text(self, ended: InterceptionEnded) -> str:
        usages = [self._bridge.priced(usage) for usage in self._usages]
        parts = [f"{ended.error_type}: {ended.error_message or ''}"] if ended.status == "failed" else []
        parts.append(ended.model or "")
        if usages:
            new = sum(usage.input_tokens for usage in usages)
            cached = sum(usage.cache_read_input_tokens + usage.cache_write_input_tokens for usage in usages)
            parts.append(f"{new:,} in, {cached:,} cached, {sum(usage.output_tokens for usage in usages):,} out")
            costs = [usage.cost_usd for usage in usages if usage.cost_usd is not None]
            parts.append(f"${sum(costs):.4f}" if len(costs) == len(usages) else "cost n/a")
        if self._injected:
            parts.append(f"{self._injected} injected calls in {ended.turns} turns")
        return " · ".join(filter(None, parts))
