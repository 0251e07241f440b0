"""Prove that a regular expression of Python's `re` takes linear time, from its structure.

An expression is linear if each of its unbounded repeats

- repeats one character, so that there is only one way to divide what it matches, and
- cannot match the character that follows it, or is the last one: giving a character back then costs a constant, and
- for a search: stands behind a character that it cannot match. Runs that begin at different places then never overlap.

The proof is strict: it refuses some expressions that are linear for other reasons.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MANY = 4096
"""Repeats with a higher maximum count as unbounded."""
OTHER = 256
"""Stands for every character that is no byte."""
ALL = frozenset(range(OTHER + 1))
NONE: frozenset[int] = frozenset()

Chars = frozenset[int]
Items = Sequence[tuple[Any, Any]]


def faults(pattern: str | bytes, flags: int = 0, *, search: bool) -> list[str]:
    """Return why an expression may take more than linear time. Empty: it is linear."""
    tree = list(parsed := parser.parse(pattern, flags))
    anchored = bool(tree) and tree[0][0] is op.AT and tree[0][1] in (op.AT_BEGINNING, op.AT_BEGINNING_STRING)
    flags = parsed.state.flags
    proof = _Proof(flags, search=search and not (anchored and not flags & re.MULTILINE))
    return list(proof.sequence(tree, follow=NONE, guard=None, repeats_later=False))


@dataclass
class _Proof:
    flags: int
    search: bool

    def sequence(self, items: Items, *, follow: Chars, guard: Chars | None, repeats_later: bool) -> Iterator[str]:
        """Check the items in order. `follow`: what may come after them; empty: the expression ends.

        `guard`: characters that must come before, since the last unbounded repeat. None: nothing does.
        """
        for number, (kind, value) in enumerate(items):
            rest = items[number + 1 :]
            after = self.first(rest, follow)
            yield from self.item(kind, value, after, guard, repeats_later or any(map(self.repeats, rest)))
            guard = self.guarded(kind, value, guard)

    def item(self, kind: Any, value: Any, after: Chars, guard: Chars | None, later: bool) -> Iterator[str]:
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            _, most, body = value
            if most == op.MAXREPEAT or most > MANY:
                yield from self.unbounded(kind, list(body), after, guard, repeats_later=later)
                return
            again = most > 1
            follow = after | self.first(list(body), after) if again else after
            later = later or (again and any(map(self.repeats, body)))
            yield from self.sequence(list(body), follow=follow, guard=guard, repeats_later=later)
        elif kind is op.SUBPATTERN:
            yield from self.sequence(list(value[-1]), follow=after, guard=guard, repeats_later=later)
        elif kind is op.BRANCH:
            for branch in value[1]:
                yield from self.sequence(list(branch), follow=after, guard=guard, repeats_later=later)
        elif kind in (op.ASSERT, op.ASSERT_NOT):
            if self.repeats((kind, value)):
                yield "an unbounded repeat in an assertion"
        elif kind in (op.GROUPREF, op.GROUPREF_EXISTS):
            yield "a back-reference"

    def unbounded(
        self, kind: Any, body: Items, after: Chars, guard: Chars | None, *, repeats_later: bool
    ) -> Iterator[str]:
        chars = self.one_character(body)
        if chars is None:
            yield "an unbounded repeat of more than one character"
            return
        if kind is not op.POSSESSIVE_REPEAT and repeats_later and chars & after:
            yield f"a repeat that can match what follows it: {_shown(chars & after)}"
        if self.search and (guard is None or guard & chars):
            yield "a search whose unbounded repeats may overlap"

    def guarded(self, kind: Any, value: Any, guard: Chars | None) -> Chars | None:
        """Return the guard behind an item: characters of which one was matched since the last unbounded repeat."""
        chars = self.one_character([(kind, value)])
        if chars is not None:
            return chars if guard is None or len(chars) < len(guard) else guard
        if kind is op.SUBPATTERN:
            for inner, content in value[-1]:
                guard = self.guarded(inner, content, guard)
            return guard
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, body = value
            if most == op.MAXREPEAT or most > MANY:
                return None
            if least:
                for inner, content in body:
                    guard = self.guarded(inner, content, guard)
        if kind is op.BRANCH and any(self.repeats(each) for branch in value[1] for each in branch):
            return None
        return guard

    def repeats(self, item: tuple[Any, Any]) -> bool:
        kind, value = item
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            return value[1] == op.MAXREPEAT or value[1] > MANY or any(map(self.repeats, value[2]))
        if kind is op.SUBPATTERN:
            return any(map(self.repeats, value[-1]))
        if kind is op.BRANCH:
            return any(self.repeats(each) for branch in value[1] for each in branch)
        return kind in (op.ASSERT, op.ASSERT_NOT) and any(map(self.repeats, value[1]))

    def first(self, items: Items, follow: Chars) -> Chars:
        """Return the characters with which the items, or what follows them, may begin."""
        found: Chars = NONE
        for kind, value in items:
            chars, may_be_empty = self.begins(kind, value)
            found |= chars
            if not may_be_empty:
                return found
        return found | follow

    def begins(self, kind: Any, value: Any) -> tuple[Chars, bool]:
        """Return the characters with which an item may begin, and whether it may be empty."""
        chars = self.one_character([(kind, value)])
        if chars is not None:
            return chars, False
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            return self.first(list(value[2]), NONE), value[0] == 0 or self.empty(value[2])
        if kind is op.SUBPATTERN:
            return self.first(list(value[-1]), NONE), self.empty(value[-1])
        if kind is op.BRANCH:
            branches = [list(branch) for branch in value[1]]
            return frozenset().union(*(self.first(b, NONE) for b in branches)), any(map(self.empty, branches))
        return NONE, True  # an assertion or an anchor

    def empty(self, items: Items) -> bool:
        return all(self.begins(kind, value)[1] for kind, value in items)

    def one_character(self, items: Items) -> Chars | None:
        """Return the characters of an item that always matches one; None for any other."""
        if len(items) != 1:
            return None
        kind, value = items[0]
        if kind is op.LITERAL:
            return self.cases(value)
        if kind is op.NOT_LITERAL:
            return ALL - self.cases(value)
        if kind is op.ANY:
            return ALL if self.flags & re.DOTALL else ALL - {10}
        if kind is op.IN:
            return self.members(value)
        if kind is op.SUBPATTERN:
            return self.one_character(list(value[-1]))
        if kind is op.BRANCH:
            each = [self.one_character(list(branch)) for branch in value[1]]
            return None if None in each else frozenset().union(*(chars for chars in each if chars is not None))
        return None

    def cases(self, code: int) -> Chars:
        if code >= OTHER:
            return frozenset({OTHER})
        both = {code, ord(chr(code).lower()), ord(chr(code).upper())} if self.flags & re.IGNORECASE else {code}
        return frozenset(min(each, OTHER) for each in both)

    def members(self, items: Items) -> Chars:
        found: Chars = NONE
        negated = False
        for kind, value in items:
            if kind is op.NEGATE:
                negated = True
            elif kind is op.LITERAL:
                found |= self.cases(value)
            elif kind is op.RANGE:
                found = found.union(*(self.cases(code) for code in range(value[0], min(value[1], OTHER) + 1)))
            elif kind is op.CATEGORY:
                found |= CATEGORIES[value] - (WIDE if self.flags & re.ASCII or not self.flags & re.UNICODE else NONE)
        return ALL - found if negated else found


WIDE = frozenset({OTHER})


def _matched(pattern: str) -> Chars:
    """White space and digits beyond ASCII are left out: they have nothing in common."""
    wide = WIDE if re.match(pattern, "\N{GREEK SMALL LETTER ALPHA}") else NONE
    return frozenset(code for code in range(OTHER) if re.match(pattern, chr(code))) | wide


CATEGORIES = {
    op.CATEGORY_DIGIT: _matched(r"\d"),
    op.CATEGORY_NOT_DIGIT: _matched(r"\D"),
    op.CATEGORY_SPACE: _matched(r"\s"),
    op.CATEGORY_NOT_SPACE: _matched(r"\S"),
    op.CATEGORY_WORD: _matched(r"\w"),
    op.CATEGORY_NOT_WORD: _matched(r"\W"),
}


def _shown(chars: Chars) -> str:
    return "".join(chr(code) for code in sorted(chars) if 32 <= code < 127)[:20] or "characters beyond ASCII"
