"""No regular expression of the package backtracks over text of clients, providers and tool servers.

Every expression of `re` that may see such text is proven linear by its structure; see `tests.support.patterns`.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.patterns import faults

PACKAGE = Path(__file__).parent.parent / "aibridge_addon"
OWN_TEXT = {"config", "cli"}
"""Parts whose expressions see only what the operator wrote."""
ANCHORED = {"match", "fullmatch"}
METHODS = ANCHORED | {"search", "sub", "subn", "split", "findall", "finditer"}
BOUNDED: dict[str, str] = {
    "credentials.redaction._NO_ESCAPES": "a run of backslashes always matches, so no search begins in it again",
    "credentials.redaction._ESCAPE": "as above",
    "dialects.messages.splice._INDEX": "the runs of blanks behind `index` never overlap",
    "dialects.responses.splice._item_type_in": "sees HEAD_SIZE bytes; the runs behind `{` never overlap",
    "messages_on_bedrock.signing.Signer": "sees a URL of the configuration",
    "providers.azure.ENTRA": "matches the whole name of a host",
    "providers.copilot.SESSION_TOKEN": "matches the whole name of a host",
}
"""Expressions that are not proven linear, and why they are."""
MADE_OF_OURS: dict[str, str] = {
    "credentials.identity.jwt_person": "constants of the providers, in which a repeat ends at a slash",
    "dialects.chat_completions.splice.ChatSplice": "a name between quotes, in HEAD_SIZE bytes",
    "dialects.errors._end_of": "the name of an element",
    "dialects.excerpt._texts": "a name between quotes, in 4096 bytes",
    "dialects.turns.Splice": "names between quotes",
    "interception.routing.host_pattern": "patterns of the configuration, for names up to MAX_HOST characters",
    "providers.base._pattern": "paths in which `{id}` ends at a slash",
    "providers.vendors._HOSTS": "patterns of hosts, for names up to MAX_HOST characters",
    "tools.patterns.is_portable": "a server's pattern, which is compiled and never matched",
    "recording.prices.models._whole": "patterns of the price list, for models up to MAX_MODEL characters",
}
"""Expressions that are put together in a function, of what, and why they are linear."""


@dataclass(frozen=True)
class Use:
    """An expression, and the methods with which its module uses it."""

    place: str
    """The module, and the name of the expression, or of the function that uses it."""
    pattern: str | bytes | None
    """None: it is put together in a function."""
    flags: int
    methods: frozenset[str]

    def __str__(self) -> str:
        return self.place


def uses() -> Iterator[Use]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        if name.partition(".")[0] in OWN_TEXT or not any(is_re(node) for node in ast.walk(tree)):
            continue
        module = vars(importlib.import_module(f"aibridge_addon.{name}"))
        for statement in tree.body:
            yield from uses_in(statement, name, module, tree)


def is_re(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=method)):
            return method in METHODS | {"compile"}
    return False


def uses_in(statement: ast.stmt, module_name: str, module: dict[str, object], tree: ast.Module) -> Iterator[Use]:
    name = named(statement)
    taken = {
        id(node.value): node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute)
    }  # `re.compile(…).match`
    for node in ast.walk(statement):
        if not is_re(node):
            continue
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr != "compile":
            methods = {node.func.attr}
        elif id(node) in taken:
            methods = {taken[id(node)]}
        else:
            methods = {
                use.attr
                for use in ast.walk(tree)
                if isinstance(use, ast.Attribute) and ast.unparse(use.value) == name and use.attr in METHODS
            } or {"search"}  # it is used elsewhere
        flags = [keyword.value for keyword in node.keywords if keyword.arg == "flags"]
        if node.func.attr == "compile":
            flags += node.args[1:]
        try:
            pattern, *given = [eval(ast.unparse(part), dict(module)) for part in (node.args[0], *flags)]
        except NameError:
            pattern, given = None, []
        yield Use(f"{module_name}.{name}", pattern, int(given[0]) if given else 0, frozenset(methods))


def named(statement: ast.stmt) -> str:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name
    return ast.unparse(statement)[:40]


USES = list(uses())


def test_the_expressions_were_found() -> None:
    places = {use.place for use in USES}
    assert {"wire.sse._TERMINATOR", "dialects.excerpt._type", "tools.naming._INVALID"} <= places
    assert len(USES) > 40


@pytest.mark.parametrize("use", USES, ids=str)
def test_an_expression_is_linear(use: Use) -> None:
    if use.pattern is None:
        assert use.place in MADE_OF_OURS
    else:
        found = faults(use.pattern, use.flags, search=not use.methods <= ANCHORED)
        assert not found or use.place in BOUNDED, f"{use.pattern!r}: {found}"


@pytest.mark.parametrize("place", [*BOUNDED, *MADE_OF_OURS])
def test_an_exception_is_needed(place: str) -> None:
    assert any(
        use.place == place
        and (use.pattern is None or faults(use.pattern, use.flags, search=not use.methods <= ANCHORED))
        for use in USES
    )


@pytest.mark.parametrize(
    ("pattern", "search"),
    [
        (r"_session_(.+)\Z", True),
        (r"\bCredential=([^/,\s]+)/", True),
        (r"(a+)+b", False),
        (r"(?:a|a)*b", False),
        (r"\s*\s*x", False),
        (r"\s+$", True),
        (r"a.*?b.*?c", False),
        (r"<(script|style)\b.*?</\1\s*>", True),
        (r"[^.]*\.com", True),
        (r"[a-z]*[a-z_]*x", False),
        (r"(?=a*b)a", False),
    ],
)
def test_an_expression_that_backtracks_is_seen(pattern: str, search: bool) -> None:
    assert faults(pattern, search=search)


@pytest.mark.parametrize(
    ("pattern", "search"),
    [
        (r"[a-z]{1,80}:", True),
        (r",\s*\"usage\"\s*:\s*null", True),
        (r"\s*\{\s*\"type\"\s*:", False),
        (r"[^?#]*", False),
        (r"arn:([a-z-]*):([a-z]*)/(.+)", False),
        (r"\{[^{]*\{", False),
    ],
)
def test_a_linear_expression_is_accepted(pattern: str, search: bool) -> None:
    assert not faults(pattern, search=search)
    assert re.compile(pattern)
