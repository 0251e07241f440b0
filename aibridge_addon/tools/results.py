"""Convert the result of a tool into parts that a dialect can carry. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aibridge_addon.dialects.turns import Media, Part, Text
from aibridge_addon.tools import media
from aibridge_addon.tools.message_json import MAX_VALUES
from aibridge_addon.wire import json_object
from aibridge_addon.wire.json_structure import has_more_values

NO_OUTPUT = "(no output)"
MAX_PARTS = 64
"""Parts of one result. Providers count images, and refuse a request with more than 100."""
MAX_ERROR = 4096
"""Characters of an error's text in records. The model gets the whole text."""

_TEXT_TYPES = frozenset({"application/json", "application/xml", "application/yaml", "application/javascript"})


class Parts(NamedTuple):
    parts: tuple[Part, ...]
    is_error: bool
    error_text: str | None


def to_parts(result: Any, max_bytes: int) -> Parts:
    """Convert a result as its server sends it: nothing in it is certain.

    The result has at most `MAX_PARTS` parts and `max_bytes` (of UTF-8 and base64). A note says what was cut.
    """
    parts = [part for block in _blocks(result) if (part := _part(block)) is not None]
    structured = result.get("structuredContent") if isinstance(result, dict) else None
    if structured is not None and not _carried(structured, parts):
        parts.append(Text(json.dumps(structured, ensure_ascii=False)))
    # Providers refuse blank texts.
    parts = [part for part in parts if not isinstance(part, Text) or part.text.strip()]
    shown = _cut(parts, max_bytes) if parts else [Text(NO_OUTPUT)]
    is_error = isinstance(result, dict) and result.get("isError") in (True, "true")  # 1 is True, too
    return Parts(tuple(shown), is_error, _error_text(shown) if is_error else None)


def _blocks(result: Any) -> list[Any]:
    """Return the blocks of a result, in whatever form it came."""
    if result is None:
        return []
    if not isinstance(result, dict):
        return result if isinstance(result, list) else [result]
    if "content" in result:
        content = result["content"]
        return content if isinstance(content, list) else [] if content is None else [content]
    # Not the form of the protocol, so all of it is shown: `toolResult` of its first drafts, and inventions.
    beside = ("structuredContent", "isError", "resultType", "ttlMs", "cacheScope", "_meta")
    rest = {name: value for name, value in result.items() if name not in beside and value is not None}
    if not rest:
        return []
    return [rest["toolResult"]] if rest.keys() == {"toolResult"} else [rest]


def _part(block: Any) -> Part | None:
    """Convert a block of content. None: it is nothing."""
    if block is None:
        return None
    if not isinstance(block, dict):
        return Text(block if isinstance(block, str) else json.dumps(block, ensure_ascii=False))
    kind = block.get("type")
    if kind in ("image", "audio"):
        return _media(_text(block, "mimeType"), block.get("data"), default=f"{kind}/*")
    if kind == "resource" and isinstance(block.get("resource"), dict):
        return _resource(block["resource"])
    if kind == "resource_link":
        return _link(block)
    if isinstance(block.get("text"), str):
        return Text(block["text"])
    if kind is None:
        if isinstance(block.get("data"), str) and isinstance(block.get("mimeType"), str):
            return _media(block["mimeType"], block["data"])
        return Text(json.dumps(block, ensure_ascii=False))
    if kind == "text":
        value = block.get("text")
        return None if value is None else Text(json.dumps(value, ensure_ascii=False))
    return Text(f"[content of the unknown kind {str(kind)[:60]!r}]")


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    return text if isinstance(text, str) else ""


def _link(link: Mapping[str, Any]) -> Text:
    lines = [f"[Link to the resource {_text(link, 'uri')}]"]
    for label, name in (("name", "name"), ("type", "mimeType"), ("description", "description")):
        lines += [f"{label}: {text}"] if (text := _text(link, name)) else []
    return Text("\n".join(lines))


def _resource(resource: Mapping[str, Any]) -> Part:
    """Convert a resource to text if its type is text, even if it was sent as bytes; else to media."""
    text, uri, mime_type = resource.get("text"), _text(resource, "uri"), _text(resource, "mimeType")
    if not isinstance(text, str):
        part = _media(mime_type, resource.get("blob"), uri)
        decoded = _maybe_text(part)
        if decoded is None:
            return part
        text = decoded
    kind = f" ({mime_type})" if mime_type else ""
    return Text(f"[Resource {uri}{kind}]\n{text}")


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


def _media(mime_type: str, data: Any, uri: str | None = None, default: str = "application/octet-stream") -> Part:
    """Convert media. What is not what it claims to be becomes a note, or a provider would refuse the whole request."""
    claimed = mime_type or default
    try:
        content, encoded = media.decoded(data)
    except ValueError as e:
        return _not_shown(claimed, uri, str(e))
    kind = media.maybe_type(content)
    if kind is None and (problem := media.maybe_problem(claimed, content)):
        return _not_shown(claimed, uri, problem)
    return Media(claimed if kind is None or kind == media.plain(claimed) else kind, encoded, uri or None)


def _not_shown(mime_type: str, uri: str | None, why: str) -> Text:
    return Text(f"[{mime_type}{f', {uri}' if uri else ''}: {why}]")


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
    data = text.encode("utf-8", "replace")
    if has_more_values(data, MAX_VALUES):
        return  # a value that comes with a result has fewer
    try:
        yield json_object.decode(data)
    except (json_object.NotJSON, json_object.Unreadable):
        pass


def _cut(parts: Sequence[Part], max_bytes: int, max_parts: int = MAX_PARTS) -> list[Part]:
    left, total, kept = max_bytes, 0, 0
    shown: list[Part] = []
    beyond, parts = len(parts) - max_parts, parts[:max_parts]
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
    if beyond > 0:
        shown.append(Text(f"[The result had too many parts: the last {beyond} were cut]"))
    return shown


def _bytes(part: Part) -> bytes:
    return (part.text if isinstance(part, Text) else part.data).encode("utf-8", "replace")


def _error_text(parts: Sequence[Part]) -> str:
    text = "\n".join(part.text if isinstance(part, Text) else part.note for part in parts)
    return text if len(text) <= MAX_ERROR else text[:MAX_ERROR] + "…"
