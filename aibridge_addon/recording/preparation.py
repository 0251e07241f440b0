"""Prepare records for the sinks: redact texts, remove texts that are not to be recorded, and price tokens.

Continuations are not changed, because they go back to the provider. Only the database receives them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aibridge_addon import records
from aibridge_addon.config.schema import Recording
from aibridge_addon.credentials.redaction import Redactor
from aibridge_addon.records import Record, TokenUsage

NO_PRICE_LIST = "no price list for this type of provider"
NO_PRICE = "no price known for this model"


class Preparation:
    """Prepares records by the `recording` section. A call may take milliseconds, so do not use it on the event loop."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._redact = Redactor(recording.redact)
        self._price: Callable[[TokenUsage], float | None] | None = None

    def load(self) -> None:
        """Import the price lists. This is the slowest import at the start."""
        from aibridge_addon.recording.pricing import cost_usd

        self._price = cost_usd

    def __call__(self, record: Record) -> Record:
        recording, redact = self._recording, self._redact
        match record:
            case records.InterceptionEnded():
                return replace(record, error_message=redact.maybe_text(record.error_message))
            case records.TokenUsage():
                return self._priced(record)
            case records.UserPrompt() if record.prompt:
                return replace(record, prompt=redact.text(record.prompt) if recording.prompts else None)
            case records.ToolUsage():
                return replace(
                    record,
                    input=redact.value(record.input) if recording.tool_inputs else None,
                    invocation_error=redact.maybe_text(record.invocation_error),
                    result=redact.maybe_text(record.result) if recording.tool_results else None,
                )
            case records.Answer():
                return replace(record, content=redact.maybe_text(record.content) if recording.answers else None)
            case records.ModelThought():
                return replace(record, content=redact.maybe_text(record.content) if recording.thoughts else None)
        return record

    def _priced(self, record: TokenUsage) -> TokenUsage:
        if record.vendor is None:
            return replace(record, cost_usd=None, unpriced=NO_PRICE_LIST)
        if self._price is None:
            self.load()
        assert self._price is not None
        cost = self._price(record)
        return replace(record, cost_usd=cost, unpriced=NO_PRICE if cost is None else None)
