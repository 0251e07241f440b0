"""Read the results of a client's own tool calls, which its next request brings. Sans-io."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aibridge_addon.wire.json_object import encode
from aibridge_addon.wire.json_values import as_dict, as_text

MAX_RESULTS = 64
"""Maximum number of results that are read of one request."""
MAX_ENTRIES = 256
"""Maximum number of entries at the end of a conversation that are searched for results."""
MAX_READ = 20 * 1024
"""Characters. More than is recorded, so that a secret at the border is complete when it is redacted."""


@dataclass(frozen=True, slots=True)
class ClientResult:
    """The result of a call that the client has run."""

    call_id: str
    text: str
    is_error: bool = False
    truncated: bool = False


def client_result(call_id: object, content: object, *, is_error: bool = False) -> ClientResult:
    """Read the content of a result: a text, a list of parts, or another JSON value."""
    if content is None:
        pieces: Iterable[str] = ()
    elif isinstance(content, list):
        pieces = map(_part, content)
    else:
        pieces = (content if isinstance(content, str) else _json(content),)
    text, truncated = cut_text(pieces)
    return ClientResult(as_text(call_id), text, is_error, truncated)


def cut_text(pieces: Iterable[str]) -> tuple[str, bool]:
    """Return pieces of a result as lines of one text of at most `MAX_READ` characters, and whether it was cut."""
    kept: list[str] = []
    left = MAX_READ + 1
    for piece in filter(None, pieces):
        kept.append(piece[:left])
        left -= len(piece) + 1
        if left <= 0:
            break
    text = "\n".join(kept)
    return text[:MAX_READ], len(text) > MAX_READ


def newest(results: Iterable[ClientResult]) -> tuple[ClientResult, ...]:
    """Return the results that have a call, in the order of the conversation. `results` has the last one first.

    Ids of calls repeat. An earlier result with the same id belongs to an earlier call.
    """
    kept: dict[str, ClientResult] = {}
    for result in results:
        if result.call_id:
            kept.setdefault(result.call_id, result)
        if len(kept) == MAX_RESULTS:
            break
    return tuple(reversed(kept.values()))


def _part(part: object) -> str:
    """Return the text of a part, or a note in place of anything else."""
    if isinstance(part, str):
        return part
    members = as_dict(part)
    if isinstance(members.get("text"), str):
        return as_text(members["text"])
    if "json" in members:  # Converse
        return _json(members["json"])
    kind = as_text(members.get("type")) or next(iter(members), "")
    return f"[{kind[:64]}]" if kind else ""


def _json(value: object) -> str:
    return encode(value).decode("utf-8", "replace")
