"""Base classes of dialects: read requests and answers, and write errors in the provider's format. Sans-io.

Reading is lenient: unknown fields, blocks, items and events are ignored and never raise. Each upstream turn results in
one `Reading`, for streamed and for blocking answers.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar

import msgspec

from aibridge_addon.dialects.client_results import ClientResult
from aibridge_addon.dialects.context import Shape, context_bytes
from aibridge_addon.dialects.errors import AnswerError as AnswerError
from aibridge_addon.dialects.errors import error_of_body
from aibridge_addon.dialects.history import History
from aibridge_addon.dialects.our_calls import arguments as arguments
from aibridge_addon.dialects.place import NOWHERE, Place, Position
from aibridge_addon.dialects.room import Room
from aibridge_addon.dialects.surroundings import UNSEEN, Surroundings
from aibridge_addon.dialects.turns import Injection
from aibridge_addon.records import ThoughtSource
from aibridge_addon.wire.framing import SERVER_SENT, Framing
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode, decode_tolerantly, encode
from aibridge_addon.wire.json_values import as_dict, as_list, as_text

DONE = b"[DONE]"
"""Data of the last event of an OpenAI stream."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
UNREAD_USAGE = "usage: not readable"
"""Why a row has no cost if the answer may have had counts that could not be read."""


@dataclass(frozen=True, slots=True)
class RequestReading:
    """The parts of a request that are recorded."""

    model: str
    """Empty if the request names no model (Azure deployments)."""
    streaming: bool
    prompt: str | None
    correlating_tool_call_id: str | None
    side_call: bool
    """The client sent the request on its own behalf: a probe, a prewarm, a title or a compaction."""
    notice: bool = False
    """Without a prompt, the client lets the model go on: a task in the background answers, or after a summary."""
    metadata_user_id: str | None = None
    """Anthropic's `metadata.user_id`. Claude Code sends its session id in it."""
    wants_usage: bool = True
    """False for a streamed chat completion without `include_usage`: its answer has no usage."""
    position: Position = NOWHERE
    """What stands before the answer: the opening of the conversation, or what the provider has of it."""
    result_of: tuple[Place, ...] = ()
    """Where the call in `answered_call_id` may be, the most exact place first. Empty: the request has only results."""
    tool_results: tuple[ClientResult, ...] = ()
    """The results of the client's own calls at the end of the request."""
    previous_response_id: str | None = None
    """The response that a Responses request continues."""
    conversation: str | None = None
    """The id of OpenAI's conversation that a Responses request belongs to."""
    client_metadata: Mapping[str, str] = NOTHING
    """Texts of `client_metadata`, in which Codex repeats its headers."""
    surroundings: Surroundings = UNSEEN
    """What the system prompt says about the client's working directory."""
    background: bool = False
    """The provider may answer later, to another request (Responses API, "Background mode")."""
    billed_by: Mapping[str, Any] = NOTHING
    """What the request says about its price beside the model, such as the number of images. Part of token rows."""
    requested: Mapping[str, str] = NOTHING
    """Members that may decide the price, such as `service_tier`, under the names that answers use."""
    hosted_tools: tuple[str, ...] = ()
    """Types of the offered tools that the provider runs, such as `web_search_20250305`."""

    @property
    def answered_call_id(self) -> str | None:
        """The last call whose result the request brings, also if a person's prompt follows the result."""
        return self.correlating_tool_call_id or (self.tool_results[-1].call_id if self.tool_results else None)


UNREAD = RequestReading(model="", streaming=False, prompt=None, correlating_tool_call_id=None, side_call=False)
"""Used for a request that cannot be read. It is still sent upstream, since the provider may be able to read it."""


@dataclass(slots=True)
class Usage:
    """Token counts of one upstream answer, under the names that records use."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    """Everything else that the provider reports about the usage, under its names."""
    complete: bool = True
    """False: a count could not be read."""
    unpriced: str | None = None
    """Why these counts have no price, such as an answer that is not billed by tokens."""
    hosted_calls: dict[str, int] = field(default_factory=dict)
    """Calls of hosted tools by type, if the reader counts them. Otherwise they are in the reading's output."""

    @property
    def any(self) -> bool:
        """Whether a count is not zero."""
        return bool(
            self.input_tokens or self.output_tokens or self.cache_read_input_tokens or self.cache_write_input_tokens
        )


@dataclass(slots=True)
class Iteration:
    """A part of an answer that is billed beside its usage, such as a compaction."""

    kind: str
    """The provider's own name without `_message`, such as `compaction` or `advisor`."""
    model: str
    """Empty: the answer's model."""
    usage: Usage


@dataclass(slots=True)
class ToolCall:
    """A tool call by the model. `server_side`: the provider itself runs it."""

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
class AnswerText:
    """Text that the model wrote for the user. Texts with nothing between them are one."""

    content: str
    truncated: bool = False


Output = ToolCall | Thought | AnswerText


@dataclass(slots=True)
class Reading:
    """The recorded content of one upstream answer, as far as it has been read."""

    response_id: str = ""
    model: str = ""
    usage: Usage | None = None
    iterations: list[Iteration] = field(default_factory=list)
    output: list[Output] = field(default_factory=list)
    """What the model produced, in its order."""
    stop_reason: str = ""
    """The provider's own word; empty if the answer has none."""
    ended: bool = False
    """The answer's terminal event has been read. The client needs nothing that comes after it."""
    finished: bool = False
    """The model has finished its output. If the stream ends here, nothing is lost."""
    error: AnswerError | None = None
    running: bool = False
    """The provider still works on the answer, as far as it has been read (Responses API, "Background mode")."""
    foreign: bool = False
    """The answer is of another kind than the dialect reads, so nothing is recorded of it."""
    limits: Mapping[str, Any] = NOTHING
    """The last event about the limits of the plan; see `limits_in_event`."""

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [part for part in self.output if isinstance(part, ToolCall)]

    @property
    def thoughts(self) -> list[Thought]:
        return [part for part in self.output if isinstance(part, Thought)]


class AnswerReader(ABC):
    """Read one upstream answer: the events of a stream, or one complete body."""

    framings: ClassVar[Mapping[str, Framing]] = SERVER_SENT
    """Framings of streamed answers, by content type. An answer of any other type is one body."""

    in_pieces: ClassVar[bool] = False
    """Whether `piece` reads a successful blocking answer, which is not kept. Otherwise `message` gets the whole."""

    def __init__(self, *, texts: bool = True) -> None:
        """`texts`: keep the texts that the model writes for the user."""
        self.reading = Reading()
        self.room = Room()
        """What of a stream may be kept. Texts for the user have a limit of their own, and do not count."""
        self._texts = texts

    @property
    @abstractmethod
    def skip(self) -> Callable[[bytes], object]:
        """Return a function that takes a raw event, and is true if nothing else of it is to be read.

        It keeps the text of an event that contains only text. All other events stay undecoded.
        """

    def head(self, headers: Mapping[str, str]) -> None:  # noqa: B027 (most dialects need the body only)
        """Read the answer's headers. `headers` is case-insensitive."""

    def event(self, name: str, data: bytes) -> None:
        """Read one event of a stream. Raises NotJSON or Unreadable."""
        self.read(name, decode_event(data))

    @abstractmethod
    def read(self, name: str, event: Any) -> None:
        """Read one event of a stream, decoded by `decode_event`. May raise NotJSON or Unreadable for a nested event."""

    @abstractmethod
    def message(self, body: dict[str, Any]) -> None:
        """Read the body of a successful blocking answer."""

    def piece(self, data: bytes) -> None:  # noqa: B027 (only for readers with `in_pieces`)
        """Read the next bytes of the body of a successful blocking answer."""

    def body_ended(self, *, cut: bool) -> None:  # noqa: B027 (only for readers with `in_pieces`)
        """Complete the reading after the last piece. `cut`: the body ended before its end, or cannot be decoded."""

    def stream_ended(self) -> None:  # noqa: B027 (most dialects have nothing to settle)
        """Complete the reading after the last event. If it has not `ended` by then, the answer was cut off."""

    def failure(self, status: int, body: bytes) -> None:
        """Read the body of an answer with a status of 400 or above."""
        self.reading.error = error_of_body(body, default_type=f"http_{status}")


class Dialect(ABC):
    """A wire format of AI providers."""

    name: ClassVar[str]
    takes_forms: ClassVar[bool] = False
    """Whether requests may be forms (`multipart/form-data`). Such a request is forwarded even if it cannot be read."""
    shape: ClassVar[Shape | None] = None
    """Where a request has its context. None: it is not known."""
    lists_hosted_calls: ClassVar[bool] = True
    """Whether an answer contains the calls of tools that the provider ran."""

    def __init__(self, *, injection: Injection | None = None, history: History | None = None) -> None:
        self.injection = injection
        """Injects tools into requests. None: this dialect has no injection."""
        self.history = history
        """Adds hidden calls to the history in a request. None: this dialect has no hidden calls."""

    def read(self, body: JSONObject) -> RequestReading:
        """Read the parts of a request that are recorded, and its place in the conversation."""
        reading = self.read_request(body)
        if self.history is None:
            return reading
        position, call_id = self.history.opening(body), reading.answered_call_id
        result_of = self.history.place_by_opening(body, position, call_id) if call_id else ()
        return replace(reading, position=position, result_of=result_of)

    def context_bytes(self, body: JSONObject, ours: int = 0) -> dict[str, int]:
        """Return the bytes of a request by category; see `dialects.context`. Empty: they are not known."""
        return context_bytes(body, self.shape, ours) if self.shape is not None else {}

    def has_tools(self, body: JSONObject) -> bool:
        """Return whether a request offers tools. An empty list offers none."""
        return body.has_elements("tools")

    @abstractmethod
    def read_request(self, body: JSONObject) -> RequestReading:
        """Read the parts of a request that are recorded."""

    def read_form(self, fields: Mapping[str, str]) -> RequestReading:
        """Read the parts of a form that are recorded. Only for dialects that take forms."""
        return UNREAD

    @abstractmethod
    def answer_reader(self, *, texts: bool = True) -> AnswerReader:
        """Return a new reader for the answer of one upstream turn. `texts`: keep the texts for the user."""

    @abstractmethod
    def error_body(self, status: int, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        """Return an error body in the provider's format, as JSON. `details`: further members of the error."""

    def error_headers(self, status: int) -> Mapping[str, str]:
        """Return the headers that belong to an error body."""
        return NOTHING

    @abstractmethod
    def error_event(self, message: str, details: Mapping[str, Any] = NOTHING) -> bytes:
        """Return an error event for a stream that has begun, in the stream's framing.

        `details` is the provider's own error object. Its members are kept, since clients base decisions on them.
        """


def decode_event(data: bytes) -> Any:
    """Decode the data of an event as JSON. OpenAI's `[DONE]` is returned unchanged."""
    return DONE if data.strip() == DONE else decode_tolerantly(data)


def event_members(data: bytes) -> JSONObject:
    """Split the data of an event into members. Data that only `decode_event` can decode is encoded anew.

    Raises NotJSON or Unreadable if `decode_event` does.
    """
    data = data.replace(b"\n", b" ")  # it can only separate tokens, and would end the `data` line of an event
    try:
        decode(data)  # members are decoded on access, which must not fail
    except (NotJSON, Unreadable):
        data = encode(as_dict(decode_event(data)))
    return JSONObject(data)


MAX_WISH = 64
"""Characters of a requested value and of a tool's type. No provider has longer names."""
MAX_HOSTED_TOOLS = 32
"""Maximum number of types of hosted tools that are kept of a request."""


class _Tool(msgspec.Struct):
    type: str = ""


_tools = msgspec.json.Decoder(list[_Tool])


def requested(body: JSONObject, *names: str) -> dict[str, str]:
    """Return those members of a request that are texts. Longer ones are cut."""
    return {name: value[:MAX_WISH] for name in names if (value := body.text(name))}


def hosted_tools(body: JSONObject, own: Collection[str]) -> tuple[str, ...]:
    """Return the types of a request's tools that the provider runs. `own` are the types of tools that clients run."""
    if "tools" not in body:
        return ()
    try:
        types = [tool.type for tool in _tools.decode(body.raw("tools"))]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        types = [as_text(as_dict(tool).get("type")) for tool in as_list(body.get("tools"))]
    return hosted_types(type_ for type_ in types if type_ not in own)


def hosted_types(types: Iterable[str]) -> tuple[str, ...]:
    """Return the types of hosted tools, each once, within the bounds."""
    return tuple(itertools.islice(dict.fromkeys(type_[:MAX_WISH] for type_ in types if type_), MAX_HOSTED_TOOLS))
