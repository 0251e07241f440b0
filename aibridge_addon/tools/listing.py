"""Read the tools of a server's list. Pure.

Only what is used is read. A member that is missing, null or of another kind is mended if its meaning is plain.
Otherwise that tool is left out and named with the member. Other tools are not affected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aibridge_addon.tools.catalog import LeftOut, ListedTool
from aibridge_addon.wire import json_object
from aibridge_addon.wire.json_object import NotJSON, Unreadable


class _Odd(Exception):
    """A tool that cannot be used. The text names the member."""


def read(result: Any, first: int = 0) -> tuple[list[ListedTool], list[LeftOut]]:
    """Return the tools of one page, and those that are left out.

    `first` is the place of the page's first tool in the whole list, for tools without a name.
    """
    tools = result.get("tools") if isinstance(result, dict) else result
    read: list[ListedTool] = []
    left_out: list[LeftOut] = []
    for place, tool in enumerate(tools if isinstance(tools, list) else (), start=first):
        if tool is None:
            continue
        try:
            read.append(_tool(tool))
        except _Odd as e:
            name = tool.get("name") if isinstance(tool, dict) else None
            left_out.append(LeftOut(name if isinstance(name, str) and name else f"tools[{place}]", str(e)))
    return read, left_out


def _tool(tool: Any) -> ListedTool:
    if not isinstance(tool, dict):
        raise _Odd("not an object")
    name = tool.get("name")
    if not isinstance(name, str):
        raise _Odd("name: not a text" if "name" in tool else "name: missing")
    annotations = tool.get("annotations")
    hints = annotations if isinstance(annotations, dict) else {}
    texts = (tool.get("description"), tool.get("title"), hints.get("title"))
    description = next((text for each in texts if (text := _text(each))), "")
    return ListedTool(name, description, _schema(tool), annotations=hints)


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return "\n".join(value)  # lines
    return value if isinstance(value, str) else ""


def _schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    name = next((name for name in ("inputSchema", "input_schema", "parameters") if tool.get(name) is not None), None)
    value = tool[name] if name is not None else {}
    if isinstance(value, str):
        value = _decoded(value)
    if value is True or value == []:  # anything, or an empty object of a language that does not know them apart
        return {}
    if not isinstance(value, dict):
        raise _Odd(f"{name}: not an object")
    return value


def _decoded(text: str) -> Any:
    try:
        return json_object.decode(text.encode("utf-8", "replace"))
    except (NotJSON, Unreadable):
        return text
