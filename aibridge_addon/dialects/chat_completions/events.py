"""The chunks of a chat completion that came as one body, for a client that asked for a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aibridge_addon.dialects.base import DONE
from aibridge_addon.wire.json_values import as_dict, as_list


def chunks_of(body: dict[str, Any], *, usage: bool) -> Iterator[dict[str, Any] | bytes]:
    """Yield the chunks of a stream with this completion, and `[DONE]`. `usage`: whether the client asked for it."""
    head = {name: value for name, value in body.items() if name not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    for place, choice in enumerate(map(as_dict, as_list(body.get("choices")))):
        index = {"index": choice.get("index", place)}
        message = {"role": "assistant"} | as_dict(choice.get("message"))
        if calls := as_list(message.get("tool_calls")):
            message["tool_calls"] = [{"index": number} | as_dict(call) for number, call in enumerate(calls)]
        beside = {name: value for name, value in choice.items() if name not in ("index", "message", "finish_reason")}
        yield head | {"choices": [index | {"delta": message, "finish_reason": None} | beside]}
        yield head | {"choices": [index | {"delta": {}, "finish_reason": choice.get("finish_reason")}]}
    if usage and as_dict(body.get("usage")):
        yield head | {"choices": [], "usage": body["usage"]}
    yield DONE
