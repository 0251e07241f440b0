"""Base classes of tool injection: tools into a request, one answer out of several turns, results back. Sans-io.

    request ─ inject ─▶ turn 1 ─┐                       ┌─▶ client: one well-formed answer
                                ├─▶ Splice ─ event(s) ──┤
    follow_up ◀─ results ───────┘                       └─▶ TurnEnd: calls to run, and what to send next

A `Splice` is fed every event of every turn. What it returns is what the client sees: visible blocks at once, injected
calls never. It keeps a turn's raw events until the turn has ended, for the follow-up request carries the provider's
own content, verbatim; an answer that calls no injected tool is never decoded for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

IMAGE_TYPES = frozenset(("image/jpeg", "image/png", "image/gif", "image/webp"))
"""What every dialect with images can show (both vendors' API references, "Vision")."""
NO_OUTPUT = "(no output)"
"""Stands for a result without content: providers refuse blank texts."""


@dataclass(frozen=True, slots=True)
class InjectedTool:
    """A tool as a request offers it."""

    name: str
    """`bmcp_<server>_<tool>`, valid for every provider."""
    description: str
    input_schema: dict[str, Any]
    """JSON Schema, whole."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an injected tool that the model asked for."""

    id: str
    name: str
    input: Any
    item: dict[str, Any]
    """The provider's own block, call or item, as it has to stand in the history."""
    anchor: str | None = None
    """In a mixed turn: the id of the client's call before which this one stood; None: after the last one."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Media:
    """An image, a sound or a file."""

    mime_type: str
    data: str
    """Base64."""
    uri: str | None = None

    @property
    def kind(self) -> str:
        """The media type without parameters, as providers write it."""
        kind = self.mime_type.partition(";")[0].strip().lower()
        return "image/jpeg" if kind == "image/jpg" else kind

    @property
    def note(self) -> str:
        """What stands for it where the dialect cannot carry it."""
        where = f", {self.uri}" if self.uri else ""
        return f"[{self.mime_type}, {len(self.data) * 3 // 4} bytes{where}: cannot be shown here]"


Part = Text | Media


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a call."""

    call: Call
    parts: tuple[Part, ...]
    is_error: bool = False


@dataclass(slots=True)
class TurnEnd:
    """What a turn that has ended asks for."""

    calls: list[Call] = field(default_factory=list)
    """Injected calls to run, in the model's order; none where the answer was cut short or broke off."""
    client_calls: list[str] = field(default_factory=list)
    """Ids of the client's own calls in the same turn: the client has to answer them, so the turn is its last."""
    content: list[dict[str, Any]] = field(default_factory=list)
    """All that the model said, hidden calls included, as the follow-up request carries it."""
    response_id: str = ""
    container: str = ""
    """Messages: the container that the turn's server tools ran in, which the next turn has to name."""


@dataclass(frozen=True, slots=True)
class FollowUp:
    """What the next turn's request is made of."""

    body: JSONObject
    """The request of the turn that has ended."""
    end: TurnEnd
    results: Sequence[Result]
    last: bool
    """No injected tool may be called any more."""
    first: JSONObject
    """The interception's first request."""
    injected: Collection[str]
    """The names of the injected tools in it."""

    @property
    def first_choice(self) -> dict[str, bytes]:
        """The client's own choice of tools, where it made one."""
        return {"tool_choice": self.first.raw("tool_choice")} if "tool_choice" in self.first else {}


class Splice(ABC):
    """One client answer out of several upstream turns."""

    def __init__(self, injected: Collection[str]) -> None:
        self.injected = frozenset(injected)

    @abstractmethod
    def begin_turn(self) -> None:
        """The next upstream answer begins."""

    @abstractmethod
    def event(self, raw: bytes, name: str, event: Any) -> bytes:
        """Take one event: its verbatim bytes, its name, and its decoded data, None where it was not worth decoding.

        Returns what the client sees of it.
        """

    @abstractmethod
    def end_turn(self) -> TurnEnd:
        """The turn's terminal event has been taken, and is held."""

    @abstractmethod
    def finish(self) -> bytes:
        """The held end of the answer, of all turns together.

        Hidden calls that are not run leave no trace: the answer never ends as if one of them were to come. Where the
        next turn has begun but was never answered, it is the end of the one before. Nothing at all where
        the turn ended in an error event: that was the end.
        """

    @abstractmethod
    def keepalive(self) -> bytes:
        """Keep-alive bytes for a waiting client."""

    @abstractmethod
    def take_body(self, body: dict[str, Any]) -> TurnEnd:
        """Take one whole blocking answer as a turn."""

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """The blocking answer of all turns together."""


class Injection(ABC):
    """Requests with injected tools."""

    def offered(self, body: JSONObject, tools: Sequence[InjectedTool]) -> list[InjectedTool]:
        """Those of the tools that an answer to this request may call: what its `Splice` has to hide.

        None where nothing may be injected; never one whose name the client has given to a tool of its own.
        """
        if not self.may_inject(body):
            return []
        own = self.own_names(body)
        return [tool for tool in tools if tool.name not in own]

    @abstractmethod
    def may_inject(self, body: JSONObject) -> bool:
        """Whether tools can be meant here: not where there are none on purpose, or the answer has a fixed form."""

    def own_names(self, body: JSONObject) -> set[str]:
        """The names of the client's own tools."""
        return set(map(self.tool_name, as_list(body.get("tools"))))

    def tool_name(self, tool: object) -> str:
        """The name of a tool in a request; empty where it has none."""
        return as_text(as_dict(tool).get("name"))

    def own_tools(self, holder: JSONObject, injected: Collection[str]) -> list[bytes]:
        """The client's own tools in a request, verbatim; none where it is not known which are not."""
        if not injected:
            return []
        return [tool for tool in holder.elements("tools") if self.tool_name(members_of(tool)) not in injected]

    @abstractmethod
    def inject(self, body: JSONObject, offered: Sequence[InjectedTool]) -> bytes:
        """The request with the tools that `offered` has chosen for it. All else stays verbatim, in its place."""

    @abstractmethod
    def follow_up(self, turn: FollowUp) -> bytes:
        """The next turn's request.

        A choice of tools that the client forced has been made, so it is `auto` from here on. The last turn goes back
        to the client's own tools, if it has any, and to its choice: those of the first request.
        """

    @abstractmethod
    def splice(self, injected: Collection[str]) -> Splice: ...


def divided(
    items: Iterable[dict[str, Any]],
    maybe_call: Callable[[dict[str, Any], str | None], Call | None],
    maybe_client_call: Callable[[dict[str, Any]], str | None],
) -> tuple[list[Call], list[str]]:
    """A turn's injected calls, each with its anchor, and the ids of the client's own."""
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


def told_usage(turns: Iterable[Mapping[str, Any]], conversation: tuple[str, ...], work: str) -> dict[str, Any]:
    """The usage that the client is told: the work of all turns, in the conversation of the first, which it knows.

    `conversation`: how the names of the members begin that tell of the conversation; `work`: the member that tells of
    the work. Objects are details of the one or the other; anything else is the last turn's.
    """
    told_by = [turn for turn in turns if turn]
    if not told_by:
        return {}
    told: dict[str, Any] = {}
    for name in dict.fromkeys(name for turn in told_by for name in turn):
        if name.startswith(conversation):
            if name in told_by[0]:
                told[name] = told_by[0][name]
        elif name == work:
            told[name] = sum(as_count(turn.get(name)) for turn in told_by)
        else:
            values = [turn[name] for turn in told_by if turn.get(name) is not None]
            counts = [as_dict(value) for value in values]
            told[name] = _added(counts) if any(counts) else values[-1] if values else None
    return told


def _added(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of objects of counts; what is no count is the last one's."""
    added: dict[str, Any] = {}
    for count in counts:
        for name, value in count.items():
            known = added.get(name)
            added[name] = known + value if _is_number(known) and _is_number(value) else value
    return added


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def object_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's schema, whole. Both vendors refuse one without a type, OpenAI one without properties."""
    told = dict(schema)
    told.setdefault("type", "object")
    if told["type"] == "object":
        told.setdefault("properties", {})
    return told


def wants_tools(holder: JSONObject) -> bool:
    """Whether tools may be added: an empty list of them was meant."""
    tools = holder.get("tools")
    return tools is None or (isinstance(tools, list) and bool(tools))


def members_of(element: bytes) -> dict[str, Any]:
    """The members of an array's element; none where it is no object, or cannot be read."""
    try:
        return as_dict(decode(element))
    except (NotJSON, Unreadable):
        return {}


class InvokedTool(Protocol):
    """What the record says of a tool."""

    @property
    def original_name(self) -> str: ...
    @property
    def server_name(self) -> str: ...
    @property
    def server_url(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Invocation:
    """A call that has been run."""

    result: Result
    tool: InvokedTool | None
    """None: it was gone by then."""
    error: str | None
    """Why there is no result, or what the tool itself said was wrong."""
    duration_ms: int
