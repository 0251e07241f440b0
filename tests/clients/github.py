"""GitHub's side of a login of Copilot: who the user is, and which models there are."""

from __future__ import annotations

from typing import Any

MODEL = "claude-sonnet-4.5"
API = "https://api.individual.githubcopilot.com"


def answer(path: str) -> Any | None:
    """Return the body of an answer to a GET, None for a path that is not known."""
    match path:
        case "/copilot_internal/user":
            return {
                "login": "matrix",
                "copilot_plan": "individual",
                "access_type_sku": "monthly_subscriber_quota",
                "chat_enabled": True,
                "cli_enabled": True,
                "analytics_tracking_id": "matrix",
                "organization_list": [],
                "endpoints": {"api": API, "proxy": API, "telemetry": API},
            }
        case "/models":
            return {"object": "list", "data": [_model()]}
    return None


def _model() -> dict[str, Any]:
    limits = {"max_context_window_tokens": 200_000, "max_prompt_tokens": 128_000, "max_output_tokens": 16_000}
    return {
        "object": "model",
        "id": MODEL,
        "name": MODEL,
        "vendor": "Anthropic",
        "version": MODEL,
        "preview": False,
        "model_picker_enabled": True,
        "policy": {"state": "enabled"},
        "supported_endpoints": ["/v1/messages"],
        "capabilities": {
            "object": "model_capabilities",
            "family": MODEL,
            "type": "chat",
            "tokenizer": "o200k_base",
            "limits": limits,
            "supports": {"streaming": True, "tool_calls": True, "parallel_tool_calls": True},
        },
    }
