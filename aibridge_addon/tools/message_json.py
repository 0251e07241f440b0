"""Decode the JSON of a server's messages in bounded time. Pure.

Values are counted before anything is built of them. Lists of tools and results of calls with too many values, or that
are nested too deeply, are decoded in parts, so that one odd tool is one tool less.
"""

from __future__ import annotations

from typing import Any

from aibridge_addon.wire import json_object
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable
from aibridge_addon.wire.json_structure import has_more_values, is_deeper

MAX_VALUES = 50_000
"""Values of one message that are decoded at once, in a few milliseconds. Beyond, a message is read in parts."""
MAX_DIVIDED_VALUES = 500_000
"""Values of one message that is read in parts. Beyond, it is not read."""
MAX_LISTED = 2000
"""Tools of one page that are read."""
MAX_BLOCKS = 1000
"""Blocks of a result with too many values that are read."""
MORE = "aibridge/more"
"""Member of a list's result: the number of further tools, which were not read."""


def decoded(data: bytes) -> list[Any]:
    """Decode a message, or a list of them.

    Raises:
        NotJSON, Unreadable: it cannot be decoded, not even in parts.
    """
    if has_more_values(data, MAX_VALUES):
        value = _in_parts(data, f"more than {MAX_VALUES} values")
    else:
        try:
            value = tolerant(data)
        except Unreadable:
            value = _in_parts(data, "nested too deeply")
    return value if isinstance(value, list) else [value]


def _in_parts(data: bytes, why: str) -> Any:
    """Decode a list of tools, or a result, one part after the other, since it cannot be decoded as a whole."""
    if has_more_values(data, MAX_DIVIDED_VALUES):
        raise Unreadable(f"more than {MAX_DIVIDED_VALUES} values")
    try:
        message = JSONObject(data)
        result = JSONObject(message.raw("result"))
    except (NotJSON, Unreadable):
        raise Unreadable(why) from None
    if tools := result.elements("tools"):
        listed = [_maybe_tool(tool) for tool in tools[:MAX_LISTED]]
        more = len(tools) - len(listed)
        page = {"tools": listed, MORE: more, "nextCursor": result.get("nextCursor")}
        return {"id": message.get("id"), "result": page}
    if "content" not in result and "structuredContent" not in result:
        raise Unreadable(why)
    blocks = result.elements("content")
    content = [_maybe_block(block, why) for block in blocks[:MAX_BLOCKS]]
    if len(blocks) > MAX_BLOCKS:
        content.append({"type": "text", "text": f"[{len(blocks) - MAX_BLOCKS} further parts were not read]"})
    if not content:
        content.append({"type": "text", "text": result.raw("structuredContent").decode("utf-8", "replace")})
    return {"id": message.get("id"), "result": {"content": content, "isError": result.get("isError")}}


def _maybe_block(data: bytes, why: str) -> Any:
    try:
        if not has_more_values(data, MAX_VALUES):
            return tolerant(data)
    except (NotJSON, Unreadable):
        pass
    return {"type": "text", "text": f"[content that cannot be read: {why}]"}


def _maybe_tool(data: bytes) -> Any:
    try:
        if not has_more_values(data, MAX_VALUES):
            return tolerant(data)
    except (NotJSON, Unreadable):
        pass
    try:
        return {"name": JSONObject(data).text("name"), "inputSchema": "cannot be decoded"}
    except (NotJSON, Unreadable):
        return "cannot be decoded"


def tolerant(data: bytes) -> Any:
    """Decode one JSON value. Raises as `json_object.decode` does."""
    if is_deeper(data, json_object.MAX_DEPTH):
        raise Unreadable("nested too deeply")
    return json_object.decode_tolerantly(data)
