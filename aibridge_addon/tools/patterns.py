"""Recognise regular expressions that mean the same in every engine: those of JavaScript, Python, RE2 and Rust. Pure."""

from __future__ import annotations

import re

MAX_LENGTH = 1000
"""Characters."""
MAX_REPEAT = 1000
"""Repetitions that RE2 takes."""
ESCAPES = "dDwWsSbBnrtfv"
"""Letters behind a backslash that every engine takes."""

_repetition = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}").match


def is_portable(pattern: object) -> bool:
    """Return whether every engine takes a pattern, and means the same by it.

    It has no lookaround, named group, back reference, class within a class, nor an escape that only some engines have.
    """
    if not isinstance(pattern, str) or len(pattern) > MAX_LENGTH:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    within, at = False, 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
            if not _is_escape(pattern[at]):
                return False
        elif within:
            if pattern[at] == "[" or pattern.startswith(("&&", "--", "~~"), at):
                return False
            within = pattern[at] != "]"
        elif pattern[at] == "[":
            within = True
            at += pattern.startswith("^", at + 1)
            if pattern.startswith("]", at + 1):
                return False  # an empty class in JavaScript, a member of the class elsewhere
        elif not _is_plain(pattern, at):
            return False
        at += 1
    return True


def _is_escape(escaped: str) -> bool:
    return escaped in ESCAPES or (escaped.isascii() and not escaped.isalnum() and escaped not in "<>")


def _is_plain(pattern: str, at: int) -> bool:
    """Return whether the character outside of a class begins nothing that only some engines have."""
    if pattern.startswith("(?", at):
        return pattern.startswith("(?:", at)
    if pattern.startswith(("++", "*+", "?+", "}+"), at):
        return False
    if pattern[at] != "{":
        return True
    found = _repetition(pattern, at)
    return found is not None and all(int(count or 0) <= MAX_REPEAT for count in found.groups())
