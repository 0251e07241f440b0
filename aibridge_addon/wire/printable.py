"""Text that nothing acts on that shows it."""

from __future__ import annotations

import json
import re

UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u00ad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb"
    "\\ud800-\\udfff\\U000e0000-\\U000e007f]"
)
"""Control and format characters, except for tabs and line breaks."""
LAYOUT = re.compile("[\\t\\n]")


def printable(text: str) -> str:
    """Return text that cannot control a terminal. Such characters are shown as an escape: `\\x1b`."""
    return text if text.isprintable() else UNSAFE.sub(lambda found: escape(found[0]), text)


def printable_line(text: str) -> str:
    """Return printable text without line breaks and tabs, for a line of a log: `\\x0a`."""
    return printable(LAYOUT.sub(lambda found: escape(found[0]), text))


def escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable_json(text: str) -> str:
    """Return JSON text with such characters as escapes of JSON. Outside of its strings there are none."""
    return UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1] if found[0] != "\x7f" else "\\u007f", text)
