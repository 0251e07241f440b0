"""Base classes of dialects: they read requests and answers, and write errors in the provider's shape. Sans-io.

Reading is lenient: an unknown field, block, item or event never fails, it is only not recorded. What is read ends in a
`Reading`, one for each upstream turn, whether the answer streamed or not.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from aibridge_addon.dialects.history import History
from aibridge_addon.dialects.turns import Injection
from aibridge_addon.records import ThoughtSource
from aibridge_addon.wire.framing import SERVER_SENT, Framing
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode
from aibridge_addon.wire.json_values import as_count, as_dict, as_text, is_count

DONE = b"[DONE]"
"""The data of the event that ends a stream of OpenAI's."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
REMINDER = "<system-reminder>"
"""Claude Code and its kin wrap text that the program, not the person, adds to a user message in this tag."""


@dataclass(frozen=True, slots=True)
class RequestReading:
    """What the record needs to know of a request."""

    model: str
    """Empty where the request names none (Azure deployments)."""
    streaming: bool
    prompt: str | None
    correlating_tool_call_id: str | None
    side_call: bool
    """A call that the client makes for itself (a probe, a prewarm, a title, a compaction): no person's turn."""
    metadata_user_id: str | None = None
    """Anthropic's `metadata.user_id`, in which Claude Code carries its session."""
    wants_usage: bool = True
    """False: a streamed answer will carry no usage, since the request did not ask for it (chat completions)."""


UNREAD = RequestReading(model="", streaming=False, prompt=None, correlating_tool_call_id=None, side_call=False)
"""A request that we cannot read may still be one that the provider can: it goes upstream, and the record says less."""


@dataclass(slots=True)
class Usage:
    """Token counts of one upstream answer, in the record's terms."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ToolCall:
    """A call that the model asked for; `server_side` if the provider itself runs it."""

    call_id: str
    name: str
    input: Any
    server_side: bool = False
    server_name: str | None = None


@dataclass(slots=True)
class Thought:
    content: str
    source: ThoughtSource


@dataclass(slots=True)
class AnswerError:
    type: str
    message: str
    told: Mapping[str, Any] = NOTHING
    """The provider's own error object."""


@dataclass(slots=True)
class Reading:
    """What one upstream answer said, as far as it has been read."""

    response_id: str = ""
    model: str = ""
    usage: Usage | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    thoughts: list[Thought] = field(default_factory=list)
    ended: bool = False
    """The answer's terminal event has been read: nothing that a client waits for comes after it."""
    finished: bool = False
    """The model has finished, as far as can be told: an end of the stream here loses nothing."""
    error: AnswerError | None = None


class AnswerReader(ABC):
    """Read one upstream answer: events of a stream, or one whole body."""

    framings: ClassVar[Mapping[str, Framing]] = SERVER_SENT
    """How a stream may be framed, by content type; an answer of any other type is a body."""

    def __init__(self) -> None:
        self.reading = Reading()

    @property
    @abstractmethod
    def skip(self) -> Callable[[bytes], object]:
        """Tell, from an event's raw bytes and without decoding it, that it carries nothing to record."""

    def head(self, headers: Mapping[str, str]) -> None:  # noqa: B027 (most dialects say all in the body)
        """Read the answer's headers, which ignore case."""

    def event(self, name: str, data: bytes) -> None:
        """Read one event of a stream. Raises NotJSON or Unreadable."""
        self.read(name, decode_event(data))

    @abstractmethod
    def read(self, name: str, event: Any) -> None:
        """Read one event of a stream, decoded by `decode_event`. May raise NotJSON or Unreadable: it holds another."""

    @abstractmethod
    def message(self, body: dict[str, Any]) -> None:
        """Read the whole body of a blocking answer that succeeded."""

    def stream_ended(self) -> None:  # noqa: B027 (most dialects have nothing to settle)
        """No further event will come: settle what is known. A reading that has not `ended` by then was cut."""

    def failure(self, status: int, body: bytes) -> None:
        """Read the body of an answer whose status is 400 or above."""
        try:
            error = as_dict(decode(body)).get("error")
        except (NotJSON, Unreadable):
            error = None
        self.reading.error = answer_error(error, default_type=f"http_{status}")


class Dialect(ABC):
    """A wire format of AI providers."""

    name: ClassVar[str]
    tools_member: ClassVar[str] = "tools"
    """The member of a request in which the client's tools are."""

    def __init__(self, *, injection: Injection | None = None, history: History | None = None) -> None:
        self.injection = injection
        """How tools are injected into requests; None: they never are."""
        self.history = history
        """How the history in a request is completed with hidden calls; None: it never is."""

    @abstractmethod
    def read_request(self, body: JSONObject) -> RequestReading:
        """Read what the record needs."""

    @abstractmethod
    def answer_reader(self) -> AnswerReader:
        """A fresh reader for the answer of one upstream turn."""

    @abstractmethod
    def error_body(self, status: int, message: str) -> bytes:
        """An error answer in the provider's shape, as JSON."""

    def error_headers(self, status: int) -> Mapping[str, str]:
        """Headers that belong to that shape."""
        return NOTHING

    @abstractmethod
    def error_event(self, message: str, told: Mapping[str, Any] = NOTHING) -> bytes:
        """An error inside a stream that has begun, as the bytes of one event in the stream's framing.

        `told`: the provider's own error object, whose members are kept, since clients decide by them what to do.
        """


def decode_event(data: bytes) -> Any:
    """The data of an event: JSON, or OpenAI's `[DONE]`, which stays as it is."""
    return DONE if data.strip() == DONE else decode(data)


def answer_error(error: object, *, default_type: str) -> AnswerError:
    """The `error` member of either vendor's error body: `type`, else `code`, and `message`."""
    if isinstance(error, str):
        return AnswerError(default_type, error)
    members = as_dict(error)
    kind = members.get("type") or members.get("code")
    message = members.get("message")
    return AnswerError(kind if isinstance(kind, str) else default_type, as_text(message), members)


def openai_usage(usage: dict[str, Any], inputs: str, outputs: str, columns: frozenset[str]) -> Usage:
    """The usage of either dialect of OpenAI's, whose input counts include what a cache gave and took."""
    details = as_dict(usage.get(f"{inputs}_details"))
    cached, written = as_count(details.get("cached_tokens")), as_count(details.get("cache_write_tokens"))
    return Usage(
        input_tokens=max(0, as_count(usage.get(inputs)) - cached - written),
        output_tokens=as_count(usage.get(outputs)),
        cache_read_input_tokens=cached,
        cache_write_input_tokens=written,
        extra=counts_beside(usage, columns),
    )


MAX_COUNTS = 64
"""Further counts of one usage object that are kept: a provider chooses their names."""


def counts_beside(usage: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Every further count of a `usage` object, under the provider's own name, members of members with dots."""
    found = ((name, count) for name, count in _counts(usage, "", depth=4) if name not in known)
    return dict(itertools.islice(found, MAX_COUNTS))


def _counts(members: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    for name, value in members.items():
        if isinstance(value, dict) and depth:
            yield from _counts(value, f"{prefix}{name}.", depth - 1)
        elif is_count(value):
            yield prefix + name, value


def last_text(parts: list[Any], kind: str) -> str | None:
    """The last text of a message's parts that a person wrote: reminders that the client put there do not count."""
    for part in reversed(parts):
        members = as_dict(part)
        text = members.get("text")
        if members.get("type") == kind and isinstance(text, str) and written_by_person(text):
            return text
    return None


def written_by_person(text: str) -> bool:
    return bool(text.strip()) and not text.lstrip().startswith(REMINDER)


def arguments(text: str) -> Any:
    """Arguments that a model wrote as JSON text; the text itself where it is no JSON, `{}` where it is empty."""
    if not text.strip():
        return {}
    try:
        return decode(text.encode())
    except (NotJSON, Unreadable):
        return text
