"""The place of a call in a conversation. Ids of calls repeat: some models number them from zero in each conversation.

A call is the same call only if it has the same id, name and arguments, and the same things stand before its answer:

- in a complete history: a digest of what was said and called in it (`Trail`);
- if the provider has the history: the id of the answer, or of the conversation, that the request continues;
- if a request only refers to the call: the id of the item.

Digests ignore what clients change between two requests: the order of members and the form of numbers in arguments,
reminders, cache markers, reasoning; in a session also results of tools and system prompts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from aibridge_addon.wire.json_object import encode

After = tuple[Literal["history", "opening", "answer", "conversation", "item", "any"], str]
"""What stands before an answer, and its digest or id."""


class Place(NamedTuple):
    after: After
    call_id: str = ""
    call: str = ""
    """Digest of the call's name and arguments. Empty if the request does not contain the call."""


ANY: After = ("any", "")
"""For requests with a call's result and nothing before it."""


@dataclass(frozen=True, slots=True)
class Position:
    """What stands before the answer to a request, and so before the calls in it."""

    digest: After | None = None
    """Of the history in the request. None: the request is only a part of it."""
    conversation: str = ""
    """Id of the provider's conversation that the answer becomes a part of."""
    named: bool = False
    """A later request may name the answer's id instead of repeating the history."""

    def after(self, answer_id: str) -> tuple[After, ...]:
        """Return what a later request may say stands before it. `answer_id` is the id that the client knows."""
        if self.conversation:
            return (("conversation", self.conversation),)
        by_id: tuple[After, ...] = (("answer", answer_id),) if self.named and answer_id else ()
        return by_id if self.digest is None else (self.digest, *by_id)


NOWHERE = Position()


def _number(text: str) -> float | int:
    """Read `1.0` as JavaScript does, which writes `1`."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


_arguments = msgspec.json.Decoder(float_hook=_number)


def call_digest(name: object, arguments: object) -> str:
    """Return a digest of a call. Arguments are JSON, as a text or as a value. Other texts count as they are."""
    text = (arguments.encode("utf-8", "replace") if isinstance(arguments, str) else encode(arguments)).strip()
    try:
        canonical = msgspec.json.encode(_arguments.decode(text or b"{}"), order="deterministic")
    except (ValueError, RecursionError):
        canonical = text
    return hashlib.sha256(encode(name) + canonical).hexdigest()
