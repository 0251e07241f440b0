"""Commands that the configuration names: a list of arguments, or one text for a shell."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainValidator

from aibridge_addon.config.errors import rejected

EXPECTED = "a command: a list of texts such as [vault, read, token], or one text for a shell"


def parse_command(value: object) -> tuple[str, ...]:
    """Return the arguments of a command. A text is run by a shell, as in other MCP clients. What is empty is none."""
    if value is None or value in ("", [], ()):
        return ()
    parts = ("/bin/sh", "-c", value) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(each, str) for each in parts):
        raise rejected(EXPECTED)
    if not parts[0] or any("\0" in each for each in parts):
        raise rejected(EXPECTED)
    return tuple(parts)


Command = Annotated[tuple[str, ...], PlainValidator(parse_command), Field(repr=False)]
