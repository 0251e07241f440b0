"""What sinks get of a record: nothing secret, nothing that is not to be recorded, and a price."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon.config.schema import Recording
from aibridge_addon.recording import pricing
from aibridge_addon.recording.preparation import MAX_ANSWER, MAX_LINK, MAX_NAME, MAX_RESULT, Preparation
from aibridge_addon.records import MAX_MODEL, Continuation, Record, TokenUsage, ToolResult
from tests.support.databases import Database, interceptions, write
from tests.support.examples import ANSWER, ENDED, PASSTHROUGH, PROMPT, STARTED, THOUGHT, TOKENS, TOOL

SECRET = "sk-ant-0123456789abcdef"
RESULT = ToolResult("i2", "toolu_1", f"the key is {SECRET}", is_error=False, truncated=False, created_at=ENDED.ended_at)
KEPT = Continuation("key", {"results": [f"the key is {SECRET}"]}, datetime(2026, 1, 2, tzinfo=UTC))


def prepare(record: Record, **recording: Any) -> Any:
    return Preparation(Recording.model_validate(recording))(record)


def test_secrets_are_redacted_in_every_text() -> None:
    assert prepare(PROMPT).prompt == "Grüße 😀 \ufffd my key is [redacted]"
    assert prepare(ENDED).error_message == "too much with key [redacted]"
    assert prepare(replace(THOUGHT, content=f"{SECRET}?")).content == "[redacted]?"
    assert prepare(TOOL).input == {"path": "/é", "n": 10**30, "key": "[redacted]"}
    assert prepare(replace(TOOL, invocation_error=SECRET)).invocation_error == "[redacted]"
    assert prepare(TOOL).result == "the key is [redacted]"
    assert prepare(RESULT).result == "the key is [redacted]"
    assert prepare(ANSWER).content == "Done: [redacted]"


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
    assert prepare(ANSWER, answers=False).content is None
    assert prepare(TOOL, tool_results=False).result is None
    assert prepare(RESULT, tool_results=False).result is None


@pytest.mark.parametrize(
    ("text", "kept", "truncated"),
    [
        ("", "", False),
        ("x" * MAX_RESULT, "x" * MAX_RESULT, False),
        ("x" * (MAX_RESULT + 1), "x" * MAX_RESULT, True),
        ("é" * MAX_RESULT, "é" * (MAX_RESULT // 2), True),
        ("x" + "😀" * MAX_RESULT, "x" + "😀" * (MAX_RESULT // 4 - 1), True),
        ("x" * (MAX_RESULT - 11) + f" {SECRET}", "x" * (MAX_RESULT - 11) + " [redacted]", False),
    ],
    ids=["empty", "longest", "a byte more", "between characters", "within a character", "a secret at the border"],
)
def test_results_are_cut_after_they_were_redacted(text: str, kept: str, truncated: bool) -> None:
    tool = prepare(replace(TOOL, result=text))
    assert (tool.result, tool.metadata.get("result_truncated", False)) == (kept, truncated)
    result = prepare(replace(RESULT, result=text))
    assert (result.result, result.truncated) == (kept, truncated)


def test_answers_are_cut_at_a_character() -> None:
    answer = replace(ANSWER, content="é" * MAX_ANSWER, truncated=False)
    assert (prepare(answer).content, prepare(answer).truncated) == ("é" * (MAX_ANSWER // 2), True)
    short = replace(ANSWER, content="é", truncated=False)
    assert (prepare(short).content, prepare(short).truncated) == ("é", False)
    assert prepare(replace(short, truncated=True)).truncated


def test_an_empty_prompt_stays_empty() -> None:
    """Metrics count the prompts that are not, recorded or not."""
    assert prepare(replace(PROMPT, prompt=""), prompts=False).prompt == ""


def test_a_price_is_put_into_the_record() -> None:
    priced = prepare(
        replace(
            TOKENS,
            unpriced=None,
            vendor="openai",
            model="gpt-4.1",
            input_tokens=1_000,
            extra={},
            output_tokens=0,
            cache_read_input_tokens=0,
            cache_write_input_tokens=0,
        )
    )
    assert (priced.cost_usd, priced.cost_source, priced.unpriced) == (pytest.approx(0.002), "price_list", None)
    assert priced.price_list.startswith("genai-prices ")


def test_an_error_of_pricing_costs_no_row(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(pricing, "priced", fail)
    preparation = Preparation(Recording())
    for _ in range(2):
        priced = preparation(replace(TOKENS, cost_usd=1.0, cost_source="price_list"))
        assert isinstance(priced, TokenUsage)
        assert (priced.cost_usd, priced.cost_source, priced.price_list) == (None, None, None)
        assert (priced.unpriced, priced.output_tokens) == ("error: OSError", TOKENS.output_tokens)
    assert len(caplog.records) == 1
    monkeypatch.setattr(pricing, "is_never_priced", fail)
    assert preparation.is_never_priced(TOKENS) is False


def test_without_the_price_lists_rows_have_no_cost_until_they_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    preparation = Preparation(Recording())
    with monkeypatch.context() as full:

        def load() -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        full.setattr(pricing, "load", load)
        assert preparation.priced(TOKENS).unpriced == "error: OSError"
    assert not (preparation.priced(TOKENS).unpriced or "").startswith("error")


PRICED_WITHOUT_FILES = """
import sys
from tests.recording.test_preparation import TOKENS, Preparation, Recording, replace
from aibridge_addon.recording.prices import vendors
preparation = Preparation(Recording())
preparation.load()
opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments) if event in ("open", "import") else None)
for vendor in (*sorted(vendors()), "groq", "nowhere", "openrouter", None):
    for model in ("gpt-4.1", "claude-sonnet-4-5", "no-such-model"):
        preparation.priced(replace(TOKENS, vendor=vendor, model=model, unpriced=None))
assert not opened, opened
"""


def test_no_file_is_opened_for_a_price_after_the_start() -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", PRICED_WITHOUT_FILES], cwd=root, check=True)


@pytest.mark.parametrize(("vendor", "reason"), [("anthropic", "model: no-such-model"), (None, "vendor: unknown")])
def test_without_a_price_the_record_says_why(vendor: str | None, reason: str) -> None:
    priced = prepare(replace(TOKENS, vendor=vendor, unpriced=None))
    assert (priced.cost_usd, priced.unpriced) == (None, reason)


@pytest.mark.parametrize("record", [STARTED, PASSTHROUGH, KEPT], ids=lambda record: type(record).__name__)
def test_other_records_stay_as_they_are(record: Record) -> None:
    assert prepare(record) is record


def test_a_continuation_has_the_same_owner_as_other_rows_and_is_otherwise_unchanged() -> None:
    name = f"ada {SECRET}"
    kept = replace(KEPT, initiator_id=name)
    owner = prepare(replace(STARTED, initiator_id=name)).initiator_id
    assert SECRET not in owner
    assert prepare(kept) == replace(kept, initiator_id=owner)


def test_what_imports_slowly_is_not_imported_with_the_addon() -> None:
    program = (
        "import sys, aibridge_addon.addon; print(*sys.modules.keys() & {'genai_prices', 'psycopg', 'sqlite_utils'})"
    )
    imported = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, check=True)
    assert imported.stdout.split() == []


def test_names_that_clients_choose_are_cut() -> None:
    long = "x" * 100_000
    started = prepare(replace(STARTED, model=long, user_agent=long, project=long, client_session_id=long))
    assert (len(started.model), len(started.user_agent), len(started.project)) == (MAX_MODEL, MAX_NAME, MAX_NAME)
    assert prepare(replace(TOOL, tool=long)).tool == "x" * MAX_MODEL
    assert len(started.client_session_id) == MAX_LINK
    # Texts have limits of their own.
    assert prepare(replace(PROMPT, prompt=long)).prompt == long
    assert prepare(replace(THOUGHT, content=long)).content == long


def test_long_ids_stay_equal_or_different() -> None:
    def shown(call_id: str) -> str:
        return str(prepare(replace(TOOL, provider_tool_call_id=call_id)).provider_tool_call_id)

    first, second = "x" * 1000 + "1", "x" * 1000 + "2"
    assert shown(first) == shown(first) != shown(second)
    assert len(shown(first)) == MAX_LINK and shown("x" * MAX_LINK) == "x" * MAX_LINK


def test_a_secret_at_the_border_of_a_cut_is_redacted() -> None:
    assert SECRET[:10] not in prepare(replace(STARTED, model="x" * (MAX_MODEL - 12) + f" {SECRET} y")).model


@pytest.mark.parametrize("name", ["m" * 300, "\U0001f600" * 10_000])
def test_a_name_of_any_length_can_be_recorded(database: Database, name: str) -> None:
    """PostgreSQL refuses rows whose columns of an index are too long."""
    prepared = Preparation(Recording())
    tool = replace(TOOL, tool=name)
    batch: list[Record] = [replace(STARTED, model=name), tool, replace(TOKENS, model=name), ENDED]
    write(database, *map(prepared, batch))
    assert interceptions(database)[STARTED.id]["model"] == name[:MAX_MODEL] == prepared.recorded_name(name)
    assert [row["tool"] for row in database.rows("aibridge_tool_usages")] == [name[:MAX_MODEL]]


def test_what_no_database_stores_is_replaced() -> None:
    started = prepare(replace(STARTED, model="a\0b", project="\ud800"))
    assert (started.model, started.project) == ("a\ufffdb", "?")
    assert Preparation(Recording()).recorded_name("a\0b") == "a\ufffdb"
