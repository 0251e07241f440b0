"""Recorded texts as messages of the GenAI conventions (`gen_ai.input.messages`, `gen_ai.output.messages`).

Source: https://github.com/open-telemetry/semantic-conventions-genai, "GenAI spans", whose JSON schemas define roles and
parts. Only with `tracing.content`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from aibridge_addon.records import Answer, ModelThought, ToolUsage
from aibridge_addon.telemetry.tracing.attributes import MAX_ATTRIBUTE, MAX_NAME

MAX_PART = 4096
"""Characters of one part's text. What is longer is cut."""
MAX_PARTS = 64
"""Parts of one message. Further ones are left out."""

Part = dict[str, Any]


def part_of(record: Answer | ModelThought | ToolUsage) -> Part | None:
    """Return the part of a message for a record. None: its text is not recorded."""
    match record:
        case Answer(content=str(text)):
            return {"type": "text", "content": text[:MAX_PART]}
        case ModelThought(content=str(text)):
            return {"type": "reasoning", "content": text[:MAX_PART]}
        case ToolUsage():
            call = {"type": "tool_call", "id": record.provider_tool_call_id[:MAX_NAME], "name": record.tool[:MAX_NAME]}
            return call if record.input is None else {**call, "arguments": _short(record.input)}
    return None


def prompt_message(prompt: str) -> str:
    return _encoded([{"role": "user", "parts": [{"type": "text", "content": prompt[:MAX_PART]}]}])


def answer_message(parts: Sequence[Part], finish_reason: str | None) -> str:
    return _encoded([{"role": "assistant", "parts": list(parts), "finish_reason": (finish_reason or "")[:MAX_NAME]}])


def arguments(value: Any) -> str:
    """Return a call's arguments as JSON."""
    return _json(_short(value))


def _short(value: Any) -> Any:
    """Return a JSON value, or the beginning of its text if that is long."""
    try:
        encoded = _json(value)
    except (RecursionError, ValueError):
        return None
    return value if len(encoded) <= MAX_PART else encoded[:MAX_PART]


def _json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _encoded(messages: list[dict[str, Any]]) -> str:
    """Return JSON that fits into an attribute. The last parts are left out if necessary, so that it stays valid."""
    message = messages[0]
    while len(text := _json(messages)) > MAX_ATTRIBUTE:
        if len(message["parts"]) > 1:
            message["parts"].pop()
        else:  # a text of control characters is six times as long in JSON
            message["parts"] = [_halved(part) for part in message["parts"]]
    return text


def _halved(part: Part) -> Part:
    """Return a part whose texts have half their length. Arguments become text."""
    texts = {name: value if isinstance(value, str) else _json(value) for name, value in part.items() if name != "type"}
    return {"type": part["type"], **{name: text[: len(text) // 2] for name, text in texts.items()}}
