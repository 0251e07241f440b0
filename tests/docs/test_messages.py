"""Every message that a client or an operator may get is on the page for troubleshooting.

The page quotes a part of each message. A new message without a line there fails here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "aibridge_addon"
INLINE = re.compile(r"`([^`\n]+)`")
LEAST = 8
"""Characters of a quotation. Shorter ones may be found anywhere."""
REFUSALS = {"Refusal": 1, "RefusedToken": 0, "error_response": 2, "error_message": 1, "unauthenticated": 1}
"""Calls that make an error of the bridge, and the place of its message."""
LEVELS = {"warning", "error"}
"""Lines with a traceback (`logger.exception`) have a paragraph of their own."""


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str, str]]:
    """Yield each call with the name of the function and that of its owner."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                yield node, "", name
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)):
                yield node, owner, name


def texts(node: ast.AST) -> Iterator[str]:
    """Yield the constant pieces of a message: of text, f-strings, sums, and of both sides of a condition."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield from re.split(r"%[a-z]", each.value.removeprefix("aibridge: "))


def messages() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each message: where it is made, and its constant pieces."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for call, owner, name in calls(ast.parse(path.read_text())):
            is_log = owner == "logger" and name in LEVELS
            place = 0 if is_log else REFUSALS.get(name)
            if place is None or place >= len(call.args):
                continue
            pieces = tuple(piece for piece in texts(call.args[place]) if len(piece.strip()) >= LEAST)
            if pieces:
                yield f"{path.relative_to(PACKAGE)}:{call.lineno}", pieces


def quotations() -> set[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    pieces = {piece.strip() for code in INLINE.findall(page) for piece in code.split("…")}
    return {piece for piece in pieces if len(piece) >= LEAST}


MESSAGES = list(messages())


def test_messages_of_each_kind_are_found() -> None:
    assert len(MESSAGES) > 40
    folders = {where.split("/")[0] for where, _ in MESSAGES}
    assert {"credentials", "proxy", "recording", "telemetry", "tools"} <= folders


@pytest.mark.parametrize(("where", "pieces"), MESSAGES, ids=[where for where, _ in MESSAGES])
def test_every_message_is_explained(where: str, pieces: tuple[str, ...]) -> None:
    quoted = quotations()
    assert any(quotation in piece for piece in pieces for quotation in quoted), pieces
