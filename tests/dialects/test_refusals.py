"""What a provider's error says about tools, and about a context that is full."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.dialects.errors import AnswerError
from aibridge_addon.dialects.refusals import is_too_long, named_tools, takes_no_tools

SENT = ["bmcp_a_x", "Read", "bmcp_a_xy", "", "bmcp_b"]
OURS = {"bmcp_a_x", "bmcp_a_xy", "bmcp_b"}


@pytest.mark.parametrize(
    ("error", "named"),
    [
        ("Invalid schema for function 'bmcp_a_xy': no", ["bmcp_a_xy"]),
        ("bmcp_a_x and bmcp_b are odd", ["bmcp_a_x", "bmcp_b"]),
        ("tools.2.custom.input_schema: no", ["bmcp_a_xy"]),
        ("tools.0.custom.name, tools.4.custom.name", ["bmcp_a_x", "bmcp_b"]),
        ("Invalid 'tools[4].function.description': string too long", ["bmcp_b"]),
        ("input[0].tools[0].parameters", ["bmcp_a_x"]),
        ("tools.1.custom.input_schema: no", []),
        ("tools.3: no", []),
        ("tools.99: no", []),
        ("tools: at most 4", []),
        ("bmcp_gone is not known", []),
        ("Read", []),
        ("", []),
        ({"detail": [{"loc": ["body", "tools", 2, "function"], "msg": "no"}]}, ["bmcp_a_xy"]),
        ("tools[0].function_declarations[2].parameters", ["bmcp_a_xy"]),
    ],
)
def test_a_tool_is_named_by_its_name_or_its_place(error: Any, named: list[str]) -> None:
    body = json.dumps({"error": {"message": error}} if isinstance(error, str) else error).encode()
    assert named_tools(body, SENT, OURS) == named


def test_an_error_that_repeats_the_request_names_no_tool() -> None:
    many = [f"bmcp_a_{number}" for number in range(20)]
    assert named_tools(json.dumps(many).encode(), many, set(many)) == []
    assert named_tools(json.dumps([*many, "tools.7.custom: no"]).encode(), many, set(many)) == ["bmcp_a_7"]


@pytest.mark.parametrize(
    ("message", "says_so"),
    [
        ("registry.ollama.ai/library/x does not support tools", True),
        ("No endpoints found that support tool use", True),
        ("Function calling is not enabled for this model", True),
        ("`tools` is not supported with this model.", True),
        ("tools.0: not supported", False),
        ("tool_choice is required", False),
    ],
)
def test_a_model_without_tools(message: str, says_so: bool) -> None:
    assert takes_no_tools(json.dumps({"error": {"message": message}}).encode()) is says_so


@pytest.mark.parametrize(
    ("status", "error", "says_so"),
    [
        (400, AnswerError("invalid_request_error", "prompt is too long: 2 tokens > 1 maximum"), True),
        (400, AnswerError("x", "input length and `max_tokens` exceed context limit: 1 + 2 > 2"), True),
        (400, AnswerError("x", "", {"code": "context_length_exceeded"}), True),
        (400, AnswerError("context_length_exceeded", ""), True),
        (413, AnswerError("x", ""), True),
        (
            429,
            AnswerError("tokens", "Request too large for gpt-4o on tokens per min (TPM): Limit 1, Requested 2"),
            True,
        ),
        (429, AnswerError("rate_limit_error", "Busy"), False),
        (400, AnswerError("invalid_request_error", "Could not process image"), False),
        (500, AnswerError("x", "took too long"), False),
    ],
)
def test_a_context_that_is_full(status: int, error: AnswerError, says_so: bool) -> None:
    assert is_too_long(status, error) is says_so
