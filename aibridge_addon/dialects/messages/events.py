"""The events of a Messages answer that came as one body, for a client that asked for a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aibridge_addon.wire.json_object import encode
from aibridge_addon.wire.json_values import as_dict, as_list, as_text

CALLS = frozenset(("tool_use", "server_tool_use", "mcp_tool_use"))
AT_THE_END = ("stop_reason", "stop_sequence", "stop_details", "container")
"""Members that a stream has in the `delta` of its `message_delta`."""


def events_of(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream with this message."""
    usage = as_dict(body.get("usage"))
    ended = {name: body[name] for name in AT_THE_END if name in body}
    begun = dict.fromkeys(name for name in ("stop_reason", "stop_sequence") if name in body)
    head = {name: value for name, value in body.items() if name not in AT_THE_END and name != "context_management"}
    yield {"type": "message_start", "message": head | begun | {"content": [], "usage": usage}}
    for index, block in enumerate(map(as_dict, as_list(body.get("content")))):
        begun_block, deltas = _divided(block)
        yield {"type": "content_block_start", "index": index, "content_block": begun_block}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    beside = {name: body[name] for name in ("context_management",) if name in body}
    yield {"type": "message_delta", "delta": ended, "usage": usage} | beside
    yield {"type": "message_stop"}


def _divided(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a block as it begins, and the deltas that complete it. Other kinds of blocks begin complete."""
    kind = as_text(block.get("type"))
    if kind == "text":
        citations = [{"type": "citations_delta", "citation": citation} for citation in as_list(block.get("citations"))]
        empty: dict[str, Any] = {"citations": []} if citations else {}
        return block | {"text": ""} | empty, [*citations, {"type": "text_delta", "text": as_text(block.get("text"))}]
    if kind == "thinking":
        signature = as_text(block.get("signature"))
        deltas = [{"type": "thinking_delta", "thinking": as_text(block.get("thinking"))}]
        signed = [{"type": "signature_delta", "signature": signature}] if signature else []
        return block | {"thinking": "", "signature": ""}, deltas + signed
    if kind in CALLS and isinstance(block.get("input"), dict):
        return block | {"input": {}}, [{"type": "input_json_delta", "partial_json": encode(block["input"]).decode()}]
    return block, []
