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

MAX_ANSWER = 64 * 1024
"""Bytes. A longer text of an answer is cut."""
MAX_RESULT = 16 * 1024
"""Bytes. A longer result of a tool is cut."""


class Preparation:
    """Prepares records by the `recording` section. A call may take milliseconds, so do not use it on the event loop."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._redact = Redactor(recording.redact)
        self._price: Callable[[TokenUsage], TokenUsage] | None = None

    def load(self) -> None:
        """Read the price lists. This is the slowest part of the start."""
        from aibridge_addon.recording import pricing

        pricing.load()
        self._price = pricing.priced

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
                result, truncated = self._kept(record.result if recording.tool_results else None, MAX_RESULT)
                return replace(
                    record,
                    input=redact.value(record.input) if recording.tool_inputs else None,
                    invocation_error=redact.maybe_text(record.invocation_error),
                    result=result,
                    metadata={**record.metadata, "result_truncated": True} if truncated else record.metadata,
                )
            case records.ToolResult():
                if not recording.tool_results:
                    return replace(record, result=None, truncated=False)
                result, truncated = self._kept(record.result, MAX_RESULT)
                return replace(record, result=result, truncated=truncated or record.truncated)
            case records.Answer():
                content, truncated = self._kept(record.content if recording.answers else None, MAX_ANSWER)
                return replace(record, content=content, truncated=truncated or record.truncated)
            case records.ModelThought():
                return replace(record, content=redact.maybe_text(record.content) if recording.thoughts else None)
        return record

    def _kept(self, text: str | None, limit: int) -> tuple[str | None, bool]:
        """Return a text redacted and cut to `limit` bytes, and whether it was cut."""
        return (None, False) if text is None else cut(self._redact.text(text), limit)

    def _priced(self, record: TokenUsage) -> TokenUsage:
        if self._price is None:
            self.load()
        assert self._price is not None
        return self._price(record)


def cut(text: str, limit: int) -> tuple[str, bool]:
    """Return the characters at the beginning of a text that fit into `limit` bytes, and whether some did not."""
    if len(text) * 4 <= limit:  # no character has more than four bytes
        return text, False
    data = text.encode("utf-8", "replace")
    return (text, False) if len(data) <= limit else (data[:limit].decode("utf-8", "ignore"), True)
