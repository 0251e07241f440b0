"""The usage of one run, as text, as JSON and as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aibridge_addon.recording.reports import Usage
from aibridge_addon.recording.runs import Calls, RunUsage
from aibridge_addon.telemetry.log.text import count, money, one_line
from aibridge_addon.wire.printable import escape

HEADS = ("Model", "Requests", "New input", "Cache read", "Cache write", "Output", "USD")
SHORT_HEADS = ("Model", "Req.", "Input", "Cached", "Written", "Output", "USD")
UNKNOWN_MODEL = "(unknown)"
MODEL_WIDTH = 28
"""Characters of a model's name in the text."""
WWW = re.compile(r"(www)\.", re.IGNORECASE)
"""GitHub makes links of words that begin so."""
RUNNER_COMMANDS = ("::", "##[")
"""Beginnings of lines that the runners of GitHub and of Azure obey, also on stderr."""
COMMAND_WIDTH = 80
"""Characters of the command in Markdown."""
MAX_TOOLS = 10
"""Tools in the text and in Markdown. JSON has their number only."""


def document(found: RunUsage) -> dict[str, Any]:
    """Return the summary for programs: the totals, and the same of each model."""
    models = [
        {"model": model, **_columns(usage, found.injected_calls.get(model, 0))}
        for model, usage in _by_cost(found.models)
    ]
    return {**_columns(found.whole, sum(found.injected_calls.values())), "models": models}


def _columns(usage: Usage, injected_calls: int) -> dict[str, Any]:
    columns = usage.columns()
    wanted = ("failed", "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens")
    return {
        "requests": columns["interceptions"],
        **{name: columns[name] for name in wanted},
        "cost_usd": columns["cost_usd"],
        "unpriced": columns["unpriced"],
        "injected_calls": injected_calls,
    }


def _by_cost(models: Mapping[str, Usage]) -> list[tuple[str, Usage]]:
    return sorted(models.items(), key=lambda item: (-(item[1].cost() or 0.0), -item[1].interceptions, item[0]))


def headline(found: RunUsage) -> str:
    usage = found.whole
    columns = usage.columns()
    parts = [_counted(usage.interceptions, "request")]
    parts += [f"{usage.failed:,} failed"] if usage.failed else []
    parts.append(f"USD {money(columns['cost_usd'])}")
    parts += [f"{_counted(columns['unpriced'], 'token row')} unpriced"] if columns["unpriced"] else []
    parts += [f"{_counted(injected, 'injected call')}"] if (injected := sum(found.injected_calls.values())) else []
    return ", ".join(parts)


def text(found: RunUsage) -> str:
    """Return the summary for a terminal of 80 columns."""
    lines = [f"aibridge: {headline(found)}"]
    if found.models:
        lines += _table([SHORT_HEADS, *(_cells(model, usage) for model, usage in _by_cost(found.models))])
    if found.tools:
        lines.append(_tools(found.tools))
    return "\n".join(lines)


def markdown(found: RunUsage, command: str) -> str:
    """Return the summary for a page, such as the summary of a CI job."""
    lines = [f"### AI usage of {_cell(one_line(command, COMMAND_WIDTH))}", "", headline(found), ""]
    if found.models:
        lines += [f"| {' | '.join(HEADS)} |", f"|---|{'--:|' * (len(HEADS) - 1)}"]
        for model, usage in _by_cost(found.models):
            lines.append(f"| {' | '.join(_cell(cell) for cell in _cells(model, usage))} |")
        lines.append("")
    if found.tools:
        lines += [_cell(_tools(found.tools)), ""]
    return "\n".join(lines) + "\n"


def _cells(model: str, usage: Usage) -> Sequence[str]:
    columns = usage.columns()
    counts = ("interceptions", "input_tokens", "cache_read_input_tokens", "cache_write_input_tokens", "output_tokens")
    return [_name(model or UNKNOWN_MODEL), *(count(columns[name]) for name in counts), money(columns["cost_usd"])]


def _name(name: str) -> str:
    line = one_line(name[: 8 * MODEL_WIDTH])
    if line.startswith(RUNNER_COMMANDS):
        line = escape(line[0]) + line[1:]
    return line if len(line) <= MODEL_WIDTH else f"{line[: MODEL_WIDTH - 1]}…"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if not number else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _tools(tools: Sequence[Calls]) -> str:
    named = []
    for calls in tools[:MAX_TOOLS]:
        marks = [one_line(calls.server_name, MODEL_WIDTH)] if calls.server_name else []
        marks += ["injected"] if calls.injected else []
        marks += [f"{calls.failed:,} failed"] if calls.failed else []
        named.append(f"{_name(calls.tool)} {calls.calls:,}" + (f" ({', '.join(marks)})" if marks else ""))
    rest = len(tools) - MAX_TOOLS
    return f"tools: {', '.join(named)}" + (f" and {rest:,} more" if rest > 0 else "")


def _cell(text: str) -> str:
    """Return text that is no markup and no link in Markdown, and stays in its cell of a table."""
    escaped = html.escape(text, quote=False)
    for character in "\\`*_[]|~:@":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return WWW.sub(lambda found: f"{found[1]}&#46;", escaped)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
