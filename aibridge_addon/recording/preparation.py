"""Prepare records for the sinks: remove texts that are not to be recorded, price tokens, and redact every text.

All records go through `Preparation`, and each of their members through `_redacted`. A member that is added later is
redacted without a change here. Three kinds of members are special:

- `NAMES` are our own words, ids and digests, and names of the configuration. Secrets are redacted in them, too, but the
  operator's patterns do not apply: `\\d+` must not change an id of a row.
- `LINKS` connect rows. Different values stay different: the mark has a digest of the whole value.
- Continuations are not changed, because they go back to the provider. Only the database receives them. The name of
  their owner becomes what the other rows of that actor have.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aibridge_addon import records
from aibridge_addon.config.schema import Recording
from aibridge_addon.credentials.redaction import Redactor, remembering
from aibridge_addon.recording.sizes import PLAIN
from aibridge_addon.records import MAX_MODEL, Record, TokenUsage
from aibridge_addon.records.members import replace

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = logging.getLogger(__name__)

ONLY_REDACTED = frozenset(
    {
        *(records.InterceptionStarted, records.InterceptionEnded),
        *(records.UpstreamAttempt, records.FirstByte, records.Overhead),
    }
)
"""The records of each request that neither `_wanted` nor `_cut` changes, so that these are not called for them."""
NAMES = frozenset(
    {
        *("id", "interception_id", "instance_id", "thread_keys", "initiator_id", "traceparent"),
        *("provider", "provider_name", "route", "method", "step", "client", "dialect", "vendor", "source", "kind"),
        *("status", "completeness", "credential_kind", "request_class", "billing", "cost_source", "price_list"),
        "window_name",
    }
)
LINKS = frozenset(
    {
        *("id", "interception_id", "instance_id", "thread_keys", "initiator_id"),
        *("provider_response_id", "provider_tool_call_id", "correlating_tool_call_id"),
        *("client_session_id", "agent_id", "prompt_id"),
    }
)
LONG = frozenset(
    {
        *("prompt", "content", "result", "input", "metadata", "extra", "value", "error_message", "invocation_error"),
        *("times", "before", "after", "details", "state", "terms"),
    }
)
"""Members with limits of their own."""
CUT = frozenset({"model", "tool"})
"""Names that are parts of indexes."""
MAX_NAME = 1024
"""Characters. Longer texts of all other members are cut: models, tools, sessions, user agents, projects."""
MAX_LINK = 256
"""Characters. Of a longer id that connects rows, the beginning and a digest of the whole are kept."""
NUL = "\ufffd"
"""Stands for the character NUL. PostgreSQL does not store it, and functions of SQLite take it for the end of a text."""
MAX_ANSWER = 64 * 1024
"""Bytes. A longer text of an answer is cut."""
MAX_RESULT = 16 * 1024
"""Bytes. A longer result of a tool is cut."""


class Preparation:
    """Prepares records by the `recording` section. A call may take milliseconds, so do not use it on the event loop."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._texts = _Texts(recording)
        self._price: Callable[[TokenUsage], TokenUsage] | None = None
        self._price_failed = False

    def load(self) -> None:
        """Read the price lists. This is the slowest part of the start."""
        from aibridge_addon.recording import pricing

        pricing.load()
        self._price = pricing.priced

    def __call__(self, record: Record) -> Record:
        if type(record) in ONLY_REDACTED:
            return self._redacted(record)
        if isinstance(record, records.Continuation):
            owner = record.initiator_id and self._texts["initiator_id"](record.initiator_id)
            return record if owner == record.initiator_id else replace(record, initiator_id=owner)
        return self._cut(self._redacted(self._wanted(record)))

    def _wanted(self, record: Record) -> Record:
        """Remove texts that are not to be recorded, and add the price."""
        recording = self._recording
        match record:
            case records.TokenUsage():
                return self.priced(record)  # it depends on names that the operator's patterns may change
            case records.UserPrompt() if record.prompt and not recording.prompts:
                return replace(record, prompt=None)
            case records.ToolUsage() if not (recording.tool_inputs and recording.tool_results):
                return replace(
                    record,
                    input=record.input if recording.tool_inputs else None,
                    result=record.result if recording.tool_results else None,
                )
            case records.ToolResult() if not recording.tool_results:
                return replace(record, result=None, truncated=False)
            case records.Answer() if not recording.answers:
                return replace(record, content=None)
            case records.ModelThought() if not recording.thoughts:
                return replace(record, content=None)
        return record

    def _redacted[Value: DataclassInstance](self, record: Value) -> Value:
        """Redact every text of a record, at any depth. Returns the record itself if nothing changes."""
        changed = {}
        for name in record.__dataclass_fields__:  # `fields` makes a list of them each time
            before = getattr(record, name)
            if before.__class__ is str:
                after = self._texts[name](before)
            elif before.__class__ in PLAIN:
                continue
            else:
                after = self._value(name, before)
            if after is not before and after != before:
                changed[name] = after
        return replace(record, **changed) if changed else record

    def _value(self, name: str, value: Any) -> Any:
        """Redact a value that is no text."""
        if not value:
            return value
        if is_dataclass(value) and not isinstance(value, type):
            return self._redacted(value)
        redact = self._texts.of(name)
        return tuple(map(redact.link, value)) if name in LINKS else redact.value(value)

    def _cut(self, record: Record) -> Record:
        """Cut long texts, after secrets at their borders were redacted."""
        match record:
            case records.ToolUsage(result=str(text)):
                text, truncated = cut(text, MAX_RESULT)
                if truncated:
                    return replace(record, result=text, metadata={**record.metadata, "result_truncated": True})
            case records.ToolResult(result=str(text)):
                text, truncated = cut(text, MAX_RESULT)
                if truncated:
                    return replace(record, result=text, truncated=True)
            case records.Answer(content=str(text)):
                text, truncated = cut(text, MAX_ANSWER)
                if truncated:
                    return replace(record, content=text, truncated=True)
        return record

    def recorded_name(self, name: str) -> str:
        """Return a name that clients choose as rows have it, such as that of a model."""
        return self._texts["model"](name)

    def priced(self, record: TokenUsage) -> TokenUsage:
        """Return the record with its cost. It takes less than a millisecond after `load`. Never raises."""
        try:
            if self._price is None:
                self.load()
            assert self._price is not None
            return self._price(record)
        except Exception as e:
            if not self._price_failed:  # log once: the next rows may fail the same way
                self._price_failed = True
                logger.exception("aibridge: the price of an answer cannot be worked out, its row has none")
            return replace(
                record, cost_usd=None, cost_source=None, price_list=None, unpriced=f"error: {type(e).__name__}"
            )

    def is_never_priced(self, record: TokenUsage) -> bool:
        """Return whether no answer to a request has a price. `record` is what it is expected to use. Never raises."""
        from aibridge_addon.recording import pricing

        try:
            return pricing.is_never_priced(record)
        except Exception:
            logger.exception("aibridge: whether an answer has a price cannot be worked out")
            return False


class _Texts(dict[str, Callable[[str], str]]):
    """Functions that redact texts, by the name of the member that has the text."""

    def __init__(self, recording: Recording) -> None:
        self._redact = _Remembering(Redactor(recording.redact))
        self._redact_secrets = _Remembering(Redactor()) if recording.redact else self._redact

    def __missing__(self, name: str) -> Callable[[str], str]:
        redact = self.of(name)
        kind = redact.link if name in LINKS else redact.long if name in LONG else redact.text
        self[name] = redact.model if name in CUT else kind
        return self[name]

    def of(self, name: str) -> _Remembering:
        """Return the redactor for members of this name."""
        return self._redact_secrets if name in NAMES else self._redact


class _Remembering:
    """A redactor that remembers short texts: records of one interception repeat its ids, and all of them names."""

    def __init__(self, redactor: Redactor) -> None:
        self.value = redactor.value
        self.link = _remembering(partial(_link, redactor))
        self.long = _remembering(redactor.value)
        self.text = _remembering(partial(_text, redactor, MAX_NAME))
        self.model = _remembering(partial(_text, redactor, MAX_MODEL))


def _remembering(redact: Callable[[str], Any]) -> Callable[[str], str]:
    def found(text: str) -> str:
        shown: str = redact(text)
        return shown.replace("\0", NUL)

    return remembering(found)


def _text(redactor: Redactor, limit: int, text: str) -> str:
    # A secret at the border is redacted before the cut.
    return redactor.text(text[: 2 * limit])[:limit]


def _link(redact: Redactor, value: str) -> str:
    """Redact an id, and shorten it. Equal ids stay equal, and different ones different."""
    shown = redact.link(value)
    if len(shown) <= MAX_LINK:
        return shown
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{shown[: MAX_LINK - 17]}~{digest}"


def cut(text: str, limit: int) -> tuple[str, bool]:
    """Return the characters at the beginning of a text that fit into `limit` bytes, and whether some did not."""
    if len(text) * 4 <= limit:  # no character has more than four bytes
        return text, False
    data = text.encode("utf-8", "replace")
    return (text, False) if len(data) <= limit else (data[:limit].decode("utf-8", "ignore"), True)
