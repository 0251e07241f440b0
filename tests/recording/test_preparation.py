"""What sinks get of a record: nothing secret, nothing that is not to be recorded, and a price."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from aibridge_addon.config.schema import Recording
from aibridge_addon.recording.preparation import NO_PRICE, NO_PRICE_LIST, Preparation
from aibridge_addon.records import Continuation, Record
from tests.support.examples import ENDED, PASSTHROUGH, PROMPT, STARTED, THOUGHT, TOKENS, TOOL

SECRET = "sk-ant-0123456789abcdef"
KEPT = Continuation("key", {"results": [f"the key is {SECRET}"]}, datetime(2026, 1, 2, tzinfo=UTC))


def prepare(record: Record, **recording: Any) -> Any:
    return Preparation(Recording.model_validate(recording))(record)


def test_secrets_are_redacted_in_every_text() -> None:
    assert prepare(PROMPT).prompt == "Grüße 😀 \0 my key is [redacted]"
    assert prepare(ENDED).error_message == "too much with key [redacted]"
    assert prepare(replace(THOUGHT, content=f"{SECRET}?")).content == "[redacted]?"
    assert prepare(TOOL).input == {"path": "/é", "n": 10**30, "key": "[redacted]"}
    assert prepare(replace(TOOL, invocation_error=SECRET)).invocation_error == "[redacted]"


def test_the_operators_patterns_are_redacted_in_every_text() -> None:
    redact = ["[Ll]et|boom|Grüße|/é"]
    assert prepare(THOUGHT, redact=redact).content == "[redacted] me see"
    assert prepare(PROMPT, redact=redact).prompt.startswith("[redacted] 😀")
    tool = prepare(TOOL, redact=redact)
    assert (tool.input["path"], tool.invocation_error) == ("[redacted]", "[redacted]")


def test_what_is_not_to_be_recorded_is_left_out() -> None:
    assert prepare(PROMPT, prompts=False).prompt is None
    assert prepare(THOUGHT, thoughts=False).content is None
    tool = prepare(TOOL, tool_inputs=False)
    assert (tool.input, tool.tool, tool.invocation_error) == (None, "Read", "boom")


def test_an_empty_prompt_stays_empty() -> None:
    """Metrics count the prompts that are not, recorded or not."""
    assert prepare(replace(PROMPT, prompt=""), prompts=False).prompt == ""


def test_a_price_is_put_into_the_record() -> None:
    priced = prepare(
        replace(
            TOKENS,
            vendor="openai",
            model="gpt-4.1",
            input_tokens=1_000,
            extra={},
            output_tokens=0,
            cache_read_input_tokens=0,
            cache_write_input_tokens=0,
        )
    )
    assert (priced.cost_usd, priced.unpriced) == (pytest.approx(0.002), None)


@pytest.mark.parametrize(("vendor", "reason"), [("anthropic", NO_PRICE), (None, NO_PRICE_LIST)])
def test_without_a_price_the_record_says_why(vendor: str | None, reason: str) -> None:
    priced = prepare(replace(TOKENS, vendor=vendor))
    assert (priced.cost_usd, priced.unpriced) == (None, reason)


@pytest.mark.parametrize("record", [STARTED, PASSTHROUGH, KEPT], ids=lambda record: type(record).__name__)
def test_other_records_stay_as_they_are(record: Record) -> None:
    assert prepare(record) is record


def test_what_imports_slowly_is_not_imported_with_the_addon() -> None:
    program = "import sys, aibridge_addon.addon; print(*sys.modules.keys() & {'genai_prices', 'sqlite_utils'})"
    imported = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, check=True)
    assert imported.stdout.split() == []
