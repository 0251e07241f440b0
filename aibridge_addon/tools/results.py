"""Convert the result of a tool into parts that a dialect can carry. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aibridge_addon.dialects.turns import Media, Part, Text
from aibridge_addon.wire import json_object

if TYPE_CHECKING:
    from mcp_types import CallToolResult

NO_OUTPUT = "(no output)"
MAX_ERROR = 4096
"""Characters of an error's text in records. The model gets the whole text."""

_TEXT_TYPES = frozenset({"application/json", "application/xml", "application/yaml", "application/javascript"})


class Parts(NamedTuple):
    parts: tuple[Part, ...]
    is_error: bool
    error_text: str | None


def to_parts(result: CallToolResult, max_bytes: int) -> Parts:
    """Convert a result. Cut it at `max_bytes` (of UTF-8 and base64), and add a note with the number of cut bytes."""
    parts = [_part(block) for block in result.content]
    if result.structured_content is not None and not _carried(result.structured_content, parts):
        parts.append(Text(json.dumps(result.structured_content, ensure_ascii=False)))
    # Providers refuse blank texts.
    parts = [part for part in parts if not isinstance(part, Text) or part.text.strip()]
    shown = _cut(parts, max_bytes) if parts else [Text(NO_OUTPUT)]
    error_text = _error_text(shown) if result.is_error else None
    return Parts(tuple(shown), result.is_error, error_text)


def _part(block: Any) -> Part:
    match block.type:
        case "text":
            return Text(block.text)
        case "image" | "audio":
            return _media(block.mime_type, block.data)
        case "resource":
            return _resource(block.resource)
        case "resource_link":
            return _link(block)
        case unknown:
            return Text(f"[content of the unknown kind {str(unknown)[:60]!r}]")


def _link(link: Any) -> Text:
    lines = [f"[Link to the resource {link.uri}]", f"name: {link.name}"]
    lines += [f"type: {link.mime_type}"] if link.mime_type else []
    lines += [f"description: {link.description}"] if link.description else []
    return Text("\n".join(lines))


def _resource(resource: Any) -> Part:
    """Convert a resource to text if its type is text, even if it was sent as bytes; else to media."""
    text = getattr(resource, "text", None)
    media = None
    if text is None:
        mime_type = resource.mime_type or "application/octet-stream"
        media = _media(mime_type, resource.blob, resource.uri)
        text = _maybe_text(media)
    if text is None and media is not None:
        return media
    kind = f" ({resource.mime_type})" if resource.mime_type else ""
    return Text(f"[Resource {resource.uri}{kind}]\n{text}")


def _maybe_text(part: Part) -> str | None:
    if isinstance(part, Text):
        return None
    kind = part.mime_type.partition(";")[0].strip().lower()
    if not kind.startswith("text/") and kind not in _TEXT_TYPES:
        return None
    try:
        return base64.b64decode(part.data).decode()
    except UnicodeDecodeError:
        return None


def _media(mime_type: str, data: str, uri: str | None = None) -> Part:
    """Convert media. Invalid base64 becomes a note, because a provider would refuse the whole request."""
    data = "".join(data.split())
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return Text(f"[{mime_type}{f', {uri}' if uri else ''}: not valid base64]")
    return Media(mime_type, data, uri)


def _carried(structured: Any, parts: Sequence[Part]) -> bool:
    """Whether the texts say the same: one of them, or all together as a list's items.

    Servers of the Python SDK wrap what is no object: `{"result": 3}` goes with the text `3`.
    """
    wrapped = isinstance(structured, dict) and structured.keys() == {"result"}
    if wrapped and structured["result"] is None:
        return True  # nothing, wrapped
    texts = [part.text for part in parts if isinstance(part, Text)]
    values = [next(_maybe_json(text), text) for text in texts]
    said = [*texts, *values, texts, values]
    return structured in said or (wrapped and structured["result"] in said)


def _maybe_json(text: str) -> Iterator[Any]:
    try:
        yield json_object.decode(text.encode("utf-8", "replace"))
    except (json_object.NotJSON, json_object.Unreadable):
        pass


def _cut(parts: Sequence[Part], max_bytes: int) -> list[Part]:
    left, total, kept = max_bytes, 0, 0
    shown: list[Part] = []
    for part in parts:
        data = _bytes(part)
        total += len(data)
        if len(data) <= left:
            shown.append(part)
            left -= len(data)
            kept += len(data)
        elif isinstance(part, Media):
            note = Text(part.note)
            shown.append(note)
            left -= min(left, len(_bytes(note)))
        else:
            start = data[:left].decode("utf-8", "ignore")
            shown += [Text(start)] if start.strip() else []
            left = 0  # nothing after a text that was cut
            kept += len(start.encode())
    if kept < total:
        shown.append(Text(f"[The result was too large: {total - kept} of {total} bytes were cut]"))
    return shown


def _bytes(part: Part) -> bytes:
    return (part.text if isinstance(part, Text) else part.data).encode("utf-8", "replace")


def _error_text(parts: Sequence[Part]) -> str:
    text = "\n".join(part.text if isinstance(part, Text) else part.note for part in parts)
    return text if len(text) <= MAX_ERROR else text[:MAX_ERROR] + "…"
