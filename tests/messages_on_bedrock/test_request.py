"""A Messages request as each Claude model on Bedrock takes it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.messages_on_bedrock.models import BETAS, MODELS, UNSUPPORTED
from aibridge_addon.messages_on_bedrock.request import choose_model, translate
from aibridge_addon.wire.json_object import JSONObject

OPUS_4_8, OPUS_4_7 = "global.anthropic.claude-opus-4-8-v1:0", "us.anthropic.claude-opus-4-7-v1:0"
OPUS_4_6, SONNET_4_6 = "eu.anthropic.claude-opus-4-6-v1:0", "anthropic.claude-sonnet-4-6-v1:0"
OPUS_4_5, SONNET_4_5 = "anthropic.claude-opus-4-5-20251101-v1:0", "anthropic.claude-sonnet-4-5-20250929-v1:0"
OTHER = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"
HEADER = (
    "interleaved-thinking-2025-05-14,effort-2025-11-24, context-management-2025-06-27",
    "prompt-caching-scope-2026-01-05,interleaved-thinking-2025-05-14",
)


def translated(members: dict[str, Any], model: str, *, betas: tuple[str, ...] = ()) -> dict[str, Any]:
    body = JSONObject(json.dumps(members).encode())
    return dict(json.loads(translate(body, model, streaming=False, betas=betas).body))


# What a model gets: thinking where `adaptive` was asked for (medium effort, 32,000 tokens), thinking where a budget
# was, the members that are kept, and the beta flags.
BUDGET, ADAPTIVE = {"type": "enabled", "budget_tokens": 16000}, {"type": "adaptive"}
ASKED = {"type": "enabled", "budget_tokens": 2048}
INTERLEAVED, EFFORT, CONTEXT = HEADER[0].replace(" ", "").split(",")
TAKES = {
    OTHER: (BUDGET, ASKED, set(), [INTERLEAVED]),
    OPUS_4_5: (BUDGET, ASKED, {"output_config"}, [INTERLEAVED, EFFORT]),
    SONNET_4_5: (BUDGET, ASKED, {"context_management"}, [INTERLEAVED, CONTEXT]),
    OPUS_4_6: (ADAPTIVE, ASKED, set(), [INTERLEAVED]),
    SONNET_4_6: (ADAPTIVE, ASKED, set(), [INTERLEAVED]),
    OPUS_4_7: (ADAPTIVE, ADAPTIVE, set(), [INTERLEAVED]),
    OPUS_4_8: (ADAPTIVE, ADAPTIVE, set(), [INTERLEAVED]),
}


@pytest.mark.parametrize("model", TAKES)
def test_each_model_gets_what_it_takes(model: str) -> None:
    adaptive, budget, kept, betas = TAKES[model]
    members = {
        "max_tokens": 32_000,
        "output_config": {"effort": "medium"},
        "context_management": {},
        **dict.fromkeys(UNSUPPORTED, "x"),
    }
    told = translated(members | {"thinking": ADAPTIVE}, model, betas=HEADER)
    assert told["thinking"] == adaptive and told["anthropic_beta"] == betas
    assert told.keys() & {"output_config", "context_management", *UNSUPPORTED} == kept
    assert translated(members | {"thinking": ASKED}, model)["thinking"] == budget


@pytest.mark.parametrize(
    ("effort", "most", "thinking"),
    [
        ("low", 10_000, {"type": "enabled", "budget_tokens": 2000}),
        ("medium", 10_000, {"type": "enabled", "budget_tokens": 5000}),
        ("high", 10_000, {"type": "enabled", "budget_tokens": 8000}),
        ("max", 10_000, {"type": "enabled", "budget_tokens": 9500}),
        (None, 10_000, {"type": "enabled", "budget_tokens": 8000}),
        ("odd", 1280, {"type": "enabled", "budget_tokens": 1024}),
        ("low", 5000, {"type": "disabled"}),
        ("high", None, {"type": "disabled"}),
        ("high", "many", {"type": "disabled"}),
    ],
)
def test_a_budget_for_thinking_follows_from_effort_and_tokens(effort: str | None, most: Any, thinking: Any) -> None:
    members = {"thinking": ADAPTIVE, "max_tokens": most, "output_config": {"effort": effort}, "metadata": {}}
    told = translated(members, OTHER)
    assert told["thinking"] == thinking
    assert told.keys() == {"thinking", "max_tokens", "anthropic_version"}, "what follows was skipped"


@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "new"}, {}, None, "odd"])
def test_other_thinking_stays_as_it_is(thinking: Any) -> None:
    for model in TAKES:
        assert translated({"thinking": thinking}, model)["thinking"] == thinking


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("claude-haiku-4-5", "small"), ("claude-3-5-haiku-latest", "small"), ("claude-opus-4-6", "big"), ("", "big")],
)
def test_small_models_are_answered_by_the_small_one(asked: str, expected: str) -> None:
    assert choose_model(asked, "big", "small") == expected
    assert choose_model(asked, "big", None) == "big"


def test_everything_else_stays_verbatim_and_in_its_place() -> None:
    body = b'{"model":"m","max_tokens": 12345678901234567890,"stream":true,"x":{"b":1.50,"a":"\\u00e9"},"messages":[ ]}'
    made = translate(JSONObject(body), OTHER, streaming=True, betas=())
    assert made.body == (
        b'{"max_tokens":12345678901234567890,"x":{"b":1.50,"a":"\\u00e9"},"messages":[ ],'
        b'"anthropic_version":"bedrock-2023-05-31"}'
    )
    name = OTHER.replace(":", "%3A").replace("/", "%2F")
    assert made.path == f"/model/{name}/invoke-with-response-stream"
    assert translate(JSONObject(body), "m:0", streaming=False, betas=()).path == "/model/m%3A0/invoke"
    assert translate(JSONObject(body), OTHER, streaming=True, betas=()) == made


def test_a_version_that_the_client_names_is_its_own() -> None:
    assert translated({"anthropic_version": "bedrock-2026-10-21"}, OTHER)["anthropic_version"] == "bedrock-2026-10-21"


def test_flags_in_the_body_are_filtered_like_those_of_the_headers() -> None:
    flags = ["unknown-1", "context-1m-2025-08-07", 7, "tool-examples-2025-10-29"]
    told = translated({"anthropic_beta": flags}, OTHER, betas=("tool-examples-2025-10-29",))
    assert told["anthropic_beta"] == ["tool-examples-2025-10-29", "context-1m-2025-08-07"]
    assert "anthropic_beta" not in translated({"anthropic_beta": "unknown-1"}, OTHER)


FLAGS = st.sampled_from([*BETAS, *(flag for model in MODELS for flag in model.betas), "unknown-1", "", " "])


@given(st.lists(st.lists(FLAGS, max_size=5).map(",".join), max_size=4), st.sampled_from(list(TAKES)))
def test_no_flag_comes_twice_or_uninvited(headers: list[str], model: str) -> None:
    told = translated({}, model, betas=tuple(headers)).get("anthropic_beta", [])
    assert len(set(told)) == len(told) and "unknown-1" not in told and told != [""]
    assert set(told) <= {flag.strip() for header in headers for flag in header.split(",")}
