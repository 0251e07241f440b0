"""The text form of values. PostgreSQL reads it by a column's type."""

from __future__ import annotations

JSON_COLUMNS = frozenset({"metadata", "input"})


def text_form(column: str, value: object) -> str | None:
    """Return a value in its text form, so that every row of a table uses the same prepared statement."""
    if value is None:
        return None
    text = str(value)
    return _json(text) if column in JSON_COLUMNS else plain(text)


def plain(text: str) -> str:
    """Replace what PostgreSQL has no place for: the character NUL."""
    return text.replace("\0", "\ufffd")


def _json(text: str) -> str:
    """Replace the character NUL in JSON. `\\\\u0000` is not its escape, but a backslash in front of `u0000`."""
    return "\\\\".join(part.replace("\\u0000", "\\ufffd") for part in text.split("\\\\"))
