"""What the beginning and the end of an event say that is too large to be read. Sans-io.

Large events carry images or long texts, which are not recorded. In every dialect the beginning has the kind of event,
and the end of an answer's last event has its usage. The excerpt is an event of the same kind without the rest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from aibridge_addon.dialects.messages.reader import TOOL_BLOCKS
from aibridge_addon.dialects.responses.reader import CLIENT_CALLS, TERMINAL, status_of

SIZE = 64 * 1024
"""Bytes. Size of the beginning and of the end that are read."""

_type = re.compile(rb'\s*\{\s*"type"\s*:\s*"([a-z_.]{1,80})"').match
name_in = re.compile(rb"^event: ?([a-z_.]{1,80})[\r\n]", re.MULTILINE).search
"""Find the name of an event in the lines before its data."""
_chunk = re.compile(rb'"(?:object"\s*:\s*"chat\.completion\.chunk"|choices"\s*:\s*\[)').search
_index = re.compile(rb'"index"\s*:\s*(\d{1,9})').search
_usage = re.compile(rb'"usage"\s*:\s*(?=\{)')
_finish = re.compile(rb'"finish_reason"\s*:\s*"(\w{1,40})"')


@dataclass(frozen=True, slots=True)
class Excerpt:
    name: str
    event: dict[str, Any]
    complete: bool
    """Whether everything of the event that is recorded is in the excerpt."""


def excerpt(beginning: bytes, ending: bytes, before: bytes = b"") -> Excerpt | None:
    """Return an excerpt of the event whose data begins and ends with these bytes. None: its kind is unknown.

    `before`: the lines before the data. They name the event if its type is not the first member.
    """
    found = _type(beginning) or name_in(before)
    kind = found[1].decode() if found is not None else ""
    if kind in TERMINAL:
        return _terminal(kind, beginning, ending)
    if kind.startswith("response."):
        return _item(kind, beginning)
    if kind.startswith("content_block_"):
        return _block(kind, beginning)
    if _chunk(beginning):
        return _chunk_excerpt(beginning, ending)
    return None


def _terminal(kind: str, beginning: bytes, ending: bytes) -> Excerpt:
    head = beginning[: beginning.find(b'"output"')]
    usage = usage_in(ending)
    response = _texts(head[head.find(b'"response"') :], "id", "model", "service_tier")
    response |= {"status": status_of(kind, response)} | ({"usage": usage} if usage else {})
    return Excerpt(kind, {"type": kind, "response": response}, complete=bool(usage))


def _item(kind: str, beginning: bytes) -> Excerpt | None:
    if kind != "response.output_item.done":
        return Excerpt(kind, {"type": kind}, complete=True)
    item = _texts(beginning[beginning.find(b'"item"') :], "type", "id", "call_id", "name")
    if "type" not in item:
        return None
    return Excerpt(kind, {"type": kind, "item": item}, complete=item["type"] not in CLIENT_CALLS)


def _block(kind: str, beginning: bytes) -> Excerpt | None:
    index = _index(beginning)
    member = "content_block" if kind == "content_block_start" else "delta"
    inner = _texts(beginning[beginning.find(b'"%s"' % member.encode()) :], "type", "id", "name")
    if index is None or "type" not in inner:
        return None
    event = {"type": kind, "index": int(index[1]), member: inner}
    return Excerpt(kind, event, complete=inner["type"] not in TOOL_BLOCKS and inner["type"] != "input_json_delta")


def _chunk_excerpt(beginning: bytes, ending: bytes) -> Excerpt:
    head = _texts(beginning[: max(0, beginning.find(b'"choices"'))], "id", "model", "service_tier")
    reasons = _finish.findall(beginning) + _finish.findall(ending)
    choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": reasons[-1].decode() if reasons else None}
    usage = usage_in(ending)
    event = head | {"choices": [choice]} | ({"usage": usage} if usage else {})
    return Excerpt("", event, complete=b'"tool_calls"' not in beginning + ending)


def usage_in(ending: bytes) -> dict[str, Any]:
    """Return the last `usage` object in the end of an event. Empty if there is none."""
    for found in reversed(list(_usage.finditer(ending))):
        try:
            usage, _ = json.JSONDecoder().raw_decode(ending[found.end() :].decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        if isinstance(usage, dict):
            return usage
    return {}


def _texts(data: bytes, *names: str) -> dict[str, Any]:
    """Return the first values of these members, if they are short texts without escapes."""
    found = {name: re.search(rb'"%s"\s*:\s*"([^"\\]{1,200})"' % name.encode(), data[:4096]) for name in names}
    return {name: match[1].decode("utf-8", "replace") for name, match in found.items() if match is not None}
