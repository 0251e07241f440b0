"""The events of a response that came as one body, for a client that asked for a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from aibridge_addon.wire.json_values import as_dict, as_list, as_text

GROWING: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "function_call": ("arguments", "response.function_call_arguments"),
        "custom_tool_call": ("input", "response.custom_tool_call_input"),
    }
)
"""For items whose text arrives in deltas: the member with the text, and the beginning of the events' names."""
ENDS = frozenset(("completed", "incomplete", "failed", "cancelled"))


def events_of(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream with this response."""
    for sequence, event in enumerate(_events(body)):
        yield {"type": event["type"], "sequence_number": sequence} | event


def _events(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = body | {"status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(map(as_dict, as_list(body.get("output")))):
        yield from _item_events(item, {"item_id": item.get("id"), "output_index": index})
    status = as_text(body.get("status"))
    yield {"type": f"response.{status if status in ENDS else 'completed'}", "response": body}


def _item_events(item: dict[str, Any], place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    index, kind = {"output_index": place["output_index"]}, as_text(item.get("type"))
    begun = item | ({"status": "in_progress"} if "status" in item else {})
    member, name = GROWING.get(kind, ("", ""))
    if kind == "message":
        yield {"type": "response.output_item.added", **index, "item": begun | {"content": []}}
        for number, part in enumerate(map(as_dict, as_list(item.get("content")))):
            yield from _part_events(part, place | {"content_index": number})
    elif kind == "reasoning" and item.get("summary"):
        yield {"type": "response.output_item.added", **index, "item": begun | {"summary": []}}
        for number, part in enumerate(map(as_dict, as_list(item.get("summary")))):
            yield from _summary_events(part, place | {"summary_index": number})
    elif member and isinstance(item.get(member), str):
        yield {"type": "response.output_item.added", **index, "item": begun | {member: ""}}
        yield {"type": f"{name}.delta", **place, "delta": item[member]}
        named = {"name": item["name"]} if kind == "function_call" and "name" in item else {}
        yield {"type": f"{name}.done", **place, **named, member: item[member]}
    else:
        yield {"type": "response.output_item.added", **index, "item": begun}
    yield {"type": "response.output_item.done", **index, "item": item}


def _part_events(part: dict[str, Any], place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of a message's part: a text, or a refusal."""
    member, name = ("refusal", "refusal") if part.get("type") == "refusal" else ("text", "output_text")
    text = as_text(part.get(member))
    logprobs: dict[str, Any] = {"logprobs": []} if name == "output_text" else {}
    yield {"type": "response.content_part.added", **place, "part": part | {member: ""}}
    yield {"type": f"response.{name}.delta", **place, "delta": text, **logprobs}
    yield {"type": f"response.{name}.done", **place, member: text, **logprobs}
    yield {"type": "response.content_part.done", **place, "part": part}


def _summary_events(part: dict[str, Any], place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    text = as_text(part.get("text"))
    yield {"type": "response.reasoning_summary_part.added", **place, "part": part | {"text": ""}}
    yield {"type": "response.reasoning_summary_text.delta", **place, "delta": text}
    yield {"type": "response.reasoning_summary_text.done", **place, "text": text}
    yield {"type": "response.reasoning_summary_part.done", **place, "part": part}
