"""Translate a Messages request for Bedrock's InvokeModel: model in the path, beta flags in the body. Sans-io.

Source: Amazon Bedrock API reference, "InvokeModel" and "InvokeModelWithResponseStream"; user guide, "Anthropic Claude
Messages API".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from aibridge_addon.messages_on_bedrock.models import (
    BETAS,
    BUDGET,
    BUDGETS,
    LEAST_BUDGET,
    UNLESS_BETA,
    UNSUPPORTED,
    Model,
    Thinking,
    model_of,
)
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_text

ANTHROPIC_VERSION = b'"bedrock-2023-05-31"'
SMALL = "haiku"
"""Part of the names of models that clients use for small side tasks."""


@dataclass(frozen=True, slots=True)
class BedrockRequest:
    path: str
    body: bytes


def choose_model(requested: str, model: str, small_fast_model: str | None) -> str:
    """Return the id of the Bedrock model that replaces the requested model."""
    return small_fast_model if small_fast_model is not None and SMALL in requested else model


def translate(body: JSONObject, model_id: str, *, streaming: bool, betas: Sequence[str]) -> BedrockRequest:
    """Return the request for Bedrock. Members that need no change stay verbatim and in order.

    `betas` are the values of the client's `anthropic-beta` headers. Flags in the body are added to them.
    """
    model = model_of(model_id)
    in_body = body.get("anthropic_beta")
    flags = accepted_betas([*betas, *map(as_text, in_body if isinstance(in_body, list) else ())], model)
    gone = {
        "model",
        "stream",
        "anthropic_beta",
        *UNSUPPORTED,
        *(name for name, beta in UNLESS_BETA.items() if beta not in flags),
    }
    changes: dict[str, bytes] = {}
    if "anthropic_version" not in body:
        changes["anthropic_version"] = ANTHROPIC_VERSION
    if flags:
        changes["anthropic_beta"] = encode(flags)
    if (thinking := adapted_thinking(body, model)) is not None:
        changes["thinking"] = encode(thinking)
    action = "invoke-with-response-stream" if streaming else "invoke"
    return BedrockRequest(f"/model/{quote(model_id, safe='')}/{action}", body.without(gone).replaced(changes))


def accepted_betas(headers: Sequence[str], model: Model) -> list[str]:
    """Return the beta flags that the model accepts, without duplicates, in their order."""
    flags = (flag.strip() for header in headers for flag in header.split(","))
    return list(dict.fromkeys(flag for flag in flags if flag in BETAS or flag in model.betas))


def adapted_thinking(body: JSONObject, model: Model) -> dict[str, Any] | None:
    """Return a `thinking` that the model accepts, or None if it accepts the request's."""
    thinking = as_dict(body.get("thinking"))
    kind = thinking.get("type")
    if kind == "adaptive" and model.thinking is Thinking.BUDGET:
        effort = as_text(as_dict(body.get("output_config")).get("effort"))
        budget = int(as_count(body.get("max_tokens")) * BUDGETS.get(effort, BUDGET))
        enough = budget >= LEAST_BUDGET
        return {"type": "enabled", "budget_tokens": budget} if enough else {"type": "disabled"}
    if kind == "enabled" and model.thinking is Thinking.ADAPTIVE:
        return {name: value for name, value in thinking.items() if name != "budget_tokens"} | {"type": "adaptive"}
    return None
