"""An AI request or answer as a conversation, for people. Sans-io: values in, text out.

=== user                     one heading for each message
What is there?
=== assistant
[thinking] Let me see.
[call Read] {"path": "x"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from aibridge_addon.dialects.base import AnswerText, Reading, Thought
from aibridge_addon.wire.json_values import as_dict, as_list, as_text
from aibridge_addon.wire.printable import printable

MAX_TEXT = 20_000
"""Characters of one text. The rest is left out, with a note."""
MAX_NAME = 200
"""Characters of a model's, a tool's or a role's name."""
MAX_MESSAGES = 400
"""Messages of a request that are shown: the last ones."""
MAX_TOOLS = 100
"""Names of tools that are shown."""


def request(body: Mapping[str, Any]) -> str:
    """Return a request of any dialect. Empty: it has no messages that are known."""
    messages = list(_messages(body))
    if not messages:
        return ""
    lines = [f"model: {_name(body.get('model'))}"] if body.get("model") else []
    if names := list(_tool_names(body)):
        rest = f" and {len(names) - MAX_TOOLS} more" if len(names) > MAX_TOOLS else ""
        lines.append(f"tools: {', '.join(names[:MAX_TOOLS])}{rest}")
    if len(messages) > MAX_MESSAGES:
        lines.append(f"({len(messages) - MAX_MESSAGES} earlier messages are not shown)")
    for role, text in messages[-MAX_MESSAGES:]:
        lines += ["", f"=== {role}", text]
    return printable("\n".join(lines))


def answer(reading: Reading) -> str:
    """Return an answer that was read."""
    lines = [f"model: {_name(reading.model)}"] if reading.model else []
    if (usage := reading.usage) is not None:
        lines.append(
            f"tokens: {usage.input_tokens:,} input, {usage.cache_read_input_tokens:,} cache read, "
            f"{usage.cache_write_input_tokens:,} cache write, {usage.output_tokens:,} output"
        )
    if reading.stop_reason:
        lines.append(f"stop reason: {_name(reading.stop_reason)}")
    if reading.output:
        lines += ["", "=== assistant"]
    for part in reading.output:
        if isinstance(part, AnswerText):
            lines.append(_short(part.content))
        elif isinstance(part, Thought):
            lines.append(f"[thinking] {_short(part.content)}")
        else:
            lines.append(f"[call {_name(part.name)}] {_json(part.input)}")
    if reading.error is not None:
        lines += ["", f"=== error: {_name(reading.error.type)}", _short(reading.error.message)]
    return printable("\n".join(lines))


def _messages(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the role and text of each message: Messages, Chat Completions, Responses, Converse."""
    system = body.get("system", body.get("instructions"))
    if system:
        yield "system", "\n".join(_parts(system))
    given = body.get("messages", body.get("input"))
    if isinstance(given, str):
        yield "user", _short(given)
    for message in map(as_dict, as_list(given)):
        kind = _name(message.get("type"))
        if "role" in message:
            parts = [*_parts(message.get("content")), *map(_call, as_list(message.get("tool_calls")))]
            yield _name(message["role"]), "\n".join(parts)
        elif kind.endswith("_call"):
            yield "assistant", _call(message)
        elif kind:
            yield kind, "\n".join(_parts(message.get("output", message.get("summary"))))


def _parts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield _short(content)
        return
    for block in as_list(content):
        if isinstance(block, str):
            yield _short(block)
            continue
        block = as_dict(block)
        kind = _name(block.get("type")) or _name(next(iter(block), ""))
        if isinstance(text := block.get("text"), str):
            yield _short(text)
        elif kind == "thinking":
            yield f"[thinking] {_short(as_text(block.get('thinking')))}"
        elif kind in ("tool_use", "toolUse"):
            yield _call(as_dict(block.get("toolUse")) or block)
        elif kind in ("tool_result", "toolResult"):
            result = as_dict(block.get("toolResult")) or block
            yield "[result] " + "\n".join(_parts(result.get("content")))
        else:
            yield f"[{kind}]"


def _call(call: Any) -> str:
    call = as_dict(call)
    function = as_dict(call.get("function")) or call
    given = function.get("arguments", function.get("input"))
    name = _name(function.get("name")) or _name(call.get("type"))
    return f"[call {name}] {given if isinstance(given, str) and len(given) <= MAX_TEXT else _json(given)}"


def _tool_names(body: Mapping[str, Any]) -> Iterator[str]:
    for tool in map(as_dict, as_list(body.get("tools"))):
        holder = as_dict(tool.get("function")) or tool
        yield _name(holder.get("name")) or _name(holder.get("type"))


def _name(value: Any) -> str:
    return as_text(value)[:MAX_NAME]


def _json(value: Any) -> str:
    try:
        return _short(json.dumps(value, ensure_ascii=False))
    except (RecursionError, TypeError, ValueError):
        return "(not readable)"


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… (+{len(text) - MAX_TEXT:,} characters)"
