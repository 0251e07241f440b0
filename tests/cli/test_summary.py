"""The summary of a run as text, JSON and Markdown."""

from __future__ import annotations

import json

import pytest

from aibridge_addon.cli import summary
from aibridge_addon.recording.reports import Usage
from aibridge_addon.recording.runs import Calls, RunUsage

HOSTILE = "x|y<script>`\x1b[31m\u202e\udc80\n[a](b)"
FOUND = RunUsage(
    {
        "claude-haiku-4-5": Usage(interceptions=1, failed=1, input_tokens=12, costs={"api": 0.25}),
        "claude-sonnet-4-5-20250929": Usage(
            interceptions=3,
            input_tokens=1_215,
            cache_read_input_tokens=13_271_000,
            cache_write_input_tokens=655_000,
            output_tokens=809,
            costs={"api": 12.5},
            unpriced={"api": 2},
        ),
    },
    {"claude-sonnet-4-5-20250929": 3},
    [Calls("now", "time", injected=True, calls=3, failed=1), Calls("Read", "", injected=False, calls=2)],
)


def test_the_text_fits_a_terminal_and_has_the_dearest_model_first() -> None:
    assert summary.text(FOUND).splitlines() == [
        "aibridge: 4 requests, 1 failed, USD 12.7500, 2 token rows unpriced, 3 injected calls",
        "Model                       Req.  Input      Cached  Written  Output      USD",
        "claude-sonnet-4-5-20250929     3  1,215  13,271,000  655,000     809  12.5000",
        "claude-haiku-4-5               1     12           0        0       0   0.2500",
        "tools: now 3 (time, injected, 1 failed), Read 2",
    ]


def test_json_has_the_totals_and_the_same_of_each_model() -> None:
    document = json.loads(json.dumps(summary.document(FOUND)))
    models = document.pop("models")
    assert document == {
        "requests": 4,
        "failed": 1,
        "input_tokens": 1_227,
        "output_tokens": 809,
        "cache_read_input_tokens": 13_271_000,
        "cache_write_input_tokens": 655_000,
        "cost_usd": 12.75,
        "unpriced": 2,
        "injected_calls": 3,
    }
    assert [model["model"] for model in models] == ["claude-sonnet-4-5-20250929", "claude-haiku-4-5"]
    assert all({*model} - {"model"} == {*document} for model in models)


def test_nothing_is_a_summary_too() -> None:
    empty = RunUsage({}, {})
    assert summary.text(empty) == "aibridge: 0 requests, USD 0.0000"
    assert summary.document(empty)["models"] == []


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_hostile_names_stay_text(size: int) -> None:
    name = HOSTILE * size
    found = RunUsage({name: Usage(interceptions=1)}, {}, [Calls(name, name, injected=True, calls=1)])
    for text in (summary.text(found), summary.markdown(found, name)):
        assert "\x1b" not in text and "\u202e" not in text and len(text) < 40_000_000
        text.encode()
    [row] = [line for line in summary.markdown(found, "x").splitlines() if line.startswith("| x")]
    assert row.count("|") == len(summary.HEADS) + 1
    assert "<script>" not in row and "`" not in row
