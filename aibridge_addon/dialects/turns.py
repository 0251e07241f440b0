"""Base classes of tool injection: add tools to a request, and merge several turns into one answer. Sans-io.

    request ─ inject ─▶ turn 1 ─┐                       ┌─▶ client: one well-formed answer
                                ├─▶ Splice ─ event(s) ──┤
    follow_up ◀─ results ───────┘                       └─▶ TurnEnd: calls to run, and what to send next

A `Splice` receives every event of every turn and returns the bytes for the client: visible blocks at once, injected
calls never. It keeps the raw events of a turn until the turn ends, because the follow-up request repeats the
provider's content verbatim. An answer without calls of injected tools is not decoded for this.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from aibridge_addon.dialects.our_calls import OurNames
from aibridge_addon.wire.framing import SSE, Framing
from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, array, decode, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

IMAGE_TYPES = frozenset(("image/jpeg", "image/png", "image/gif", "image/webp"))
"""Image types that every dialect with images accepts (both vendors' API references, "Vision")."""
LEFT_OUT = "[The result is left out: the provider refused a request with it]"
"""Replaces a result that a provider may have refused, in later requests."""
NO_OUTPUT = "(no output)"
"""Replaces a result without content. Providers refuse blank texts."""


@dataclass(frozen=True, slots=True)
class InjectedTool:
    """A tool that is offered in a request."""

    name: str
    """`bmcp_<server>_<tool>`, valid for every provider."""
    description: str
    input_schema: dict[str, Any]
    """The complete JSON Schema of an object, with its `properties`."""


@dataclass(frozen=True, slots=True)
class Call:
    """The model's call of an injected tool."""

    id: str
    name: str
    input: Any
    item: dict[str, Any]
    """The provider's own block, call or item, as the history must contain it."""
    anchor: str | None = None
    """In a mixed turn: the id of the next client call after this one. None: no client call follows."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Media:
    """An image, audio or a file."""

    mime_type: str
    data: str
    """Base64."""
    uri: str | None = None

    @property
    def kind(self) -> str:
        """The media type without parameters, in the spelling of the providers."""
        kind = self.mime_type.partition(";")[0].strip().lower()
        return "image/jpeg" if kind == "image/jpg" else kind

    @property
    def note(self) -> str:
        """The text that replaces it in a dialect that cannot transport it."""
        where = f", {self.uri}" if self.uri else ""
        return f"[{self.mime_type}, {len(self.data) * 3 // 4} bytes{where}: cannot be shown here]"


Part = Text | Media


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a call."""

    call: Call
    parts: tuple[Part, ...]
    is_error: bool = False


@dataclass(slots=True)
class TurnEnd:
    """The content of a turn that has ended."""

    calls: list[Call] = field(default_factory=list)
    """Injected calls to run, in the model's order. Empty if the answer was truncated."""
    client_calls: list[str] = field(default_factory=list)
    """Ids of the client's own calls in the same turn. The client must answer them, so no turn can follow."""
    content: list[dict[str, Any]] = field(default_factory=list)
    """The model's complete output, including hidden calls, in the form that the follow-up request needs."""
    response_id: str = ""
    container: str = ""
    """Messages only: the container in which server tools ran. The next turn must name it."""


@dataclass(frozen=True, slots=True)
class FollowUp:
    """The input for the next turn's request."""

    body: JSONObject
    """The request of the turn that has ended."""
    end: TurnEnd
    results: Sequence[Result]
    last: bool
    """The next turn is the last one: it must not call injected tools."""
    first: JSONObject
    """The interception's first request."""
    injected: Collection[str]
    """Names of the injected tools in the first request."""


class Splice(ABC):
    """Merge several upstream turns into one answer for the client."""

    CALL_SIGN: ClassVar[bytes] = b'"(?:%s)"'
    """Pattern of bytes that may belong to an injected call. `%s` stands for the names of such calls."""
    framing: ClassVar[Framing] = SSE
    """The framing of a stream that is made of a blocking answer."""

    def __init__(self, injected: Collection[str], own: Collection[str] = ()) -> None:
        """`injected`: names of the injected tools. `own`: names of the client's own tools."""
        self.injected = OurNames(injected, own)
        self.keeps = True
        """Whether the turn's events are kept. False: they are too large, so that no other turn can follow."""
        self.names_ours = re.compile(b'"(?:%s)"' % self.injected.pattern).search
        self._shows_call = re.compile(self.CALL_SIGN.replace(b"%s", self.injected.pattern)).search

    def shows_call(self, data: bytes) -> object:
        """Return whether bytes of an event show a call that may be hidden. Quotes inside a JSON text are escaped."""
        return self._shows_call(data)

    def head(self, headers: Mapping[str, str]) -> None:  # noqa: B027 (most dialects need the body only)
        """Take the headers of the turn's answer. `headers` is case-insensitive."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the blocking answer, merged from all turns, that differ from those of the last turn."""
        return {}

    def framed(self, name: str, event: Any) -> bytes:
        """Return an event of `events_of` as a stream contains it. Bytes are its data already."""
        return self.framing.frame(name, event if isinstance(event, bytes) else encode(event))

    @property
    @abstractmethod
    def hides(self) -> bool:
        """Whether the current turn has called an injected tool, as far as it has been read."""

    @abstractmethod
    def begin_turn(self) -> None:
        """Begin the next upstream answer."""

    @abstractmethod
    def event(self, raw: bytes, name: str, event: Any) -> bytes:
        """Take one event and return the bytes for the client.

        `raw` are its verbatim bytes. `event` is its decoded data, or None if it was not decoded.
        """

    @abstractmethod
    def large_event(self, beginning: bytes) -> bytes | None:
        """Take the beginning of an event that is too large to be read, and return the bytes for the client.

        The rest of the event passes unchanged. Empty: the whole event is hidden. None: it may contain a hidden call.
        """

    @abstractmethod
    def keep_large(self, raw: bytes) -> None:
        """Keep a large event, which was not hidden, for the next turn's request."""

    @abstractmethod
    def end_turn(self) -> TurnEnd:
        """End the turn after its terminal event, which is kept back."""

    @abstractmethod
    def finish(self) -> bytes:
        """Return the end of the merged answer.

        Hidden calls that were not run are not visible in it. It is the end that the current turn has sent, and empty
        if the turn has sent none or ended in an error event.
        """

    @abstractmethod
    def keepalive(self) -> bytes:
        """Return keep-alive bytes for a waiting client."""

    @property
    @abstractmethod
    def spliced(self) -> bool:
        """Whether the client's answer differs from the first turn."""

    @property
    def ends_without_reason(self) -> bool:
        """Whether the turn has ended properly although it has no stop reason."""
        return False

    @abstractmethod
    def take_body(self, body: dict[str, Any]) -> TurnEnd:
        """Take one blocking answer as a turn."""

    @abstractmethod
    def events_of(self, body: dict[str, Any], *, usage: bool) -> Iterable[tuple[str, Any]]:
        """Return the events, each with its name, of a stream with this blocking answer.

        `usage` says whether the client asked for usage (Chat Completions).
        """

    @abstractmethod
    def body_of(self, events: Sequence[bytes]) -> dict[str, Any]:
        """Return the blocking answer with the content of a whole stream of these raw events."""

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """Return the blocking answer, merged from all turns."""


class Injection(ABC):
    """Add tools to requests, and build the requests of later turns."""

    MAX_TOOLS: ClassVar[int | None] = None
    """How many tools the API takes in one request. None: as many as fit into the model's context."""

    @property
    def form(self) -> str:
        """How tools are written. Injections of the same form write a tool with the same bytes."""
        return type(self).__name__

    def offered(self, body: JSONObject, tools: Sequence[InjectedTool]) -> list[InjectedTool]:
        """Return the tools to inject into this request. Its `Splice` hides calls of these.

        The list is empty if nothing may be injected. Tools with the name of one of the client's tools are left out, and
        so are the last ones if the API would refuse that many.
        """
        if not self.may_inject(body) or (self.demands_call(body) and not self.can_meet_demand(body)):
            return []
        own = self.own_names(body)
        return [tool for tool in tools if tool.name not in own][: self.room(body)]

    def room(self, body: JSONObject) -> int | None:
        """Return how many tools may be added to the client's own; None: any number."""
        return None if self.MAX_TOOLS is None else max(0, self.MAX_TOOLS - len(self.own_definitions(body)))

    def own_definitions(self, body: JSONObject) -> Sequence[Any]:
        """Return the client's own tools, as the request defines them."""
        return as_list(body.get("tools"))

    @abstractmethod
    def may_inject(self, body: JSONObject) -> bool:
        """Return whether tools may be injected: not if the client excluded tools or demands a fixed output format."""

    @abstractmethod
    def demands_call(self, body: JSONObject) -> bool:
        """Return whether the client demands that the model calls a tool. It means its own tools."""

    def can_meet_demand(self, body: JSONObject) -> bool:
        """Return whether the client has tools of its own. Otherwise the model could only call ours."""
        return bool(self.own_definitions(body))

    def own_names(self, body: JSONObject) -> set[str]:
        """Return the names of the client's own tools."""
        return set(map(self.tool_name, self.own_definitions(body)))

    def tool_name(self, tool: object) -> str:
        """Return the name of a tool in a request, or an empty text."""
        return as_text(as_dict(tool).get("name"))

    def own_tools(self, holder: JSONObject, injected: Collection[str]) -> list[bytes]:
        """Return the client's own tools in a request, verbatim. Empty if the injected names are unknown."""
        if not injected:
            return []
        return self._tools_without(holder, injected)

    @abstractmethod
    def definition(self, tool: InjectedTool) -> bytes:
        """Return a tool as requests define it."""

    @abstractmethod
    def inject(self, body: JSONObject, offered: Sequence[InjectedTool]) -> bytes:
        """Return the request with the tools chosen by `offered`. Everything else stays verbatim and in order."""

    def without(self, body: JSONObject, names: Collection[str]) -> bytes:
        """Return a request without the tools of these names. Everything else stays verbatim and in order."""
        left = self._tools_without(body, names)
        return body.replaced({"tools": array(left)}) if left else body.without(("tools",)).replaced({})

    def _tools_without(self, holder: JSONObject, names: Collection[str]) -> list[bytes]:
        return [tool for tool in holder.elements("tools") if self.tool_name(members_of(tool)) not in names]

    def sent_names(self, body: JSONObject) -> list[str]:
        """Return the names of all tools in a request, in their order. A tool without a name has an empty one."""
        return [self.tool_name(tool) for tool in self.own_definitions(body)]

    @abstractmethod
    def follow_up(self, turn: FollowUp) -> bytes:
        """Return the next turn's request.

        A `tool_choice` that demands a call stays, because calls of injected tools do not meet the demand. It becomes
        `auto` once the provider has run a call of a tool of its own. The last turn restores the client's tools, if it
        had any.
        """

    @abstractmethod
    def splice(self, injected: Collection[str], own: Collection[str] = ()) -> Splice:
        """Return what merges the turns. `own`: names of the client's tools, whose calls are never hidden."""

    def for_model(self, model: str) -> Injection:
        """Return the injection for requests to this model, if the model is not in the body."""
        return self


def call_id_for(response_id: str, place: int, call: Mapping[str, Any]) -> str:
    """Return an id for a call that came without one. The same call in the same answer gets the same id."""
    return f"call_{hashlib.blake2s(encode([response_id, place, call]), digest_size=12).hexdigest()}"


def divide_calls(
    items: Iterable[dict[str, Any]],
    maybe_call: Callable[[dict[str, Any], str | None], Call | None],
    maybe_client_call: Callable[[dict[str, Any]], str | None],
) -> tuple[list[Call], list[str]]:
    """Return a turn's injected calls, each with its anchor, and the ids of the client's own calls."""
    calls: list[Call] = []
    client_calls: list[str] = []
    waiting: list[dict[str, Any]] = []

    def settle(anchor: str | None) -> None:
        calls.extend(call for item in waiting if (call := maybe_call(item, anchor)) is not None)
        waiting.clear()

    for item in items:
        if maybe_call(item, None) is not None:
            waiting.append(item)
        elif (call_id := maybe_client_call(item)) is not None:
            client_calls.append(call_id)
            settle(call_id)
    settle(None)
    return calls, client_calls


def combined_usage(turns: Iterable[Mapping[str, Any]], conversation: tuple[str, ...], work: str) -> dict[str, Any]:
    """Return the usage of all turns as the client sees it: the first turn's input and the output of all turns.

    `conversation` lists the prefixes of members that describe the input, which the client knows from the first turn.
    `work` names the member with the output count. Objects with details are added up; other members are the last turn's.
    """
    reported = [turn for turn in turns if turn]
    usage: dict[str, Any] = {}
    for name in dict.fromkeys(name for turn in reported for name in turn):
        if name.startswith(conversation):
            if name in reported[0]:
                usage[name] = reported[0][name]
        elif name == work:
            usage[name] = sum(as_count(turn.get(name)) for turn in reported)
        else:
            values = [turn[name] for turn in reported if turn.get(name) is not None]
            counts = [as_dict(value) for value in values]
            usage[name] = _added(counts) if any(counts) else values[-1] if values else None
    return usage


def _added(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up objects of counts. Values that are not numbers are taken from the last object."""
    added: dict[str, Any] = {}
    for count in counts:
        for name, value in count.items():
            known = added.get(name)
            added[name] = known + value if _is_number(known) and _is_number(value) else value
    return added


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def wants_tools(holder: JSONObject) -> bool:
    """Return whether tools may be added: not to an empty list, which excludes tools, nor to what cannot be read."""
    tools = holder.get("tools")
    if tools is None:
        return holder.raw("tools") == b"null"
    return isinstance(tools, list) and bool(tools)


def members_of(element: bytes) -> dict[str, Any]:
    """Return the members of an array element. Empty if it is not a readable object."""
    try:
        return as_dict(decode(element))
    except (NotJSON, Unreadable):
        return {}


class InvokedTool(Protocol):
    """The recorded properties of a tool."""

    @property
    def original_name(self) -> str: ...
    @property
    def server_name(self) -> str: ...
    @property
    def server_url(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Invocation:
    """A call that was run."""

    result: Result
    tool: InvokedTool | None
    """None: the tool no longer existed when it was called."""
    error: str | None
    """Why there is no result, or the error that the tool itself reported."""
    duration_ms: int
    error_kind: str | None = None
    """The kind of the error, for counting: one of `tools.ErrorKind`."""
