"""Merge several turns into one Converse answer (Amazon Bedrock API reference, "ConverseStream").

The client sees:

- the first turn's `messageStart`;
- the visible blocks of every turn, numbered consecutively;
- the last turn's `messageStop` and `metadata`. Output tokens are those of all turns. Input tokens are those of the
  first turn, which is the conversation that the client knows.

An answer of one turn without hidden calls passes byte for byte, and so does each message that does not change. Only
changed messages are encoded, with the headers that they came with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from aibridge_addon.dialects.base import event_members
from aibridge_addon.dialects.bedrock.converse_events import content_of, decoded, events_of
from aibridge_addon.dialects.bedrock.heads import Heads
from aibridge_addon.dialects.our_calls import called_input, valid_input, valid_name
from aibridge_addon.dialects.turns import Call, Splice, TurnEnd, call_id_for, combined_usage, divide_calls
from aibridge_addon.wire.framing import AWS_EVENT_STREAM, framing_of_event
from aibridge_addon.wire.json_object import NotJSON, Unreadable, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

INDEX = "contentBlockIndex"
CONVERSATION = ("inputTokens", "cache")
"""Prefixes of `usage` members that describe the input."""
WORK, TOTAL = "outputTokens", "totalTokens"
LATENCY = "latencyMs"
ENDING = ("additionalModelResponseFields", "trace", "performanceConfig", "serviceTier")
"""Members of a blocking answer that the merged one takes from the last turn."""
CUT_SHORT = frozenset(
    (
        *("max_tokens", "model_context_window_exceeded", "guardrail_intervened", "content_filtered"),
        *("malformed_model_output", "malformed_tool_use"),
    )
)
"""Stop reasons of a message whose calls may be incomplete and are not to be run."""


class ConverseSplice(Splice):
    framing = AWS_EVENT_STREAM

    def __init__(self, injected: Collection[str], own: Collection[str] = ()) -> None:
        super().__init__(injected, own)
        self._next_index = 0
        self._first: dict[str, Any] = {}
        """The first turn's body."""
        self._last: dict[str, Any] = {}
        """The last turn's body."""
        self._visible: list[dict[str, Any]] = []
        self._client_calls = False
        self._spliced = False
        """Whether the client's answer differs from the first turn."""
        self._usages: list[dict[str, Any]] = []
        """The usage of each turn that has one."""
        self._latency: list[int] = []
        self._heads = Heads()
        self._failed = self._finished = False
        self._reset()

    def _reset(self) -> None:
        self._raw: list[bytes] = []
        self._tail: list[bytes] = []
        """The verbatim end of the turn, which passes unchanged if no other turn follows."""
        self._indexes: dict[int, int | None] = {}
        """The index in the client's answer of each block of the turn. None: hidden."""
        self._client_ids: list[str] = []
        self._stop: dict[str, Any] | None = None
        """The turn's `messageStop`."""
        self._metadata: dict[str, Any] = {}
        """The turn's `metadata`."""
        self._hides = False

    @property
    def spliced(self) -> bool:
        return self._spliced

    @property
    def hides(self) -> bool:
        return self._hides

    def begin_turn(self) -> None:
        self._reset()

    def head(self, headers: Mapping[str, str]) -> None:
        self._heads.add(headers)

    @property
    def headers(self) -> Mapping[str, str]:
        return self._heads.merged()

    # --- a stream ---------------------------------------------------------------------------------------------

    def event(self, raw: bytes, name: str, event: Any) -> bytes:
        if self.keeps:
            self._raw.append(raw)
        if event is None:
            return self._passed(self._renumbered(raw))
        members = as_dict(event)
        if INDEX in members:
            self._open(as_count(members[INDEX]), as_dict(as_dict(members.get("start")).get("toolUse")))
            return self._passed(self._renumbered(raw))
        if name == "messageStart":
            return b"" if self._spliced else raw
        if name == "messageStop":
            self._stop = members
            self._tail.append(raw)
            return b""
        if name == "metadata":
            self._metadata = members
            self._measured(members)
            self._tail.append(raw)
            return b""
        if name == "error":
            self._failed = True
            held, self._tail = self._tail, []
            return b"".join(held) + raw if not self._spliced else raw
        return self._passed(raw)

    def _passed(self, raw: bytes) -> bytes:
        """Return the bytes that pass at once. After the held end, events are held as well to keep the order."""
        if self._finished or (self._tail and self._spliced):
            return b"" if self._spliced else raw
        if self._tail:
            self._tail.append(raw)
            return b""
        return raw

    def _open(self, index: int, tool_use: dict[str, Any]) -> None:
        """Number a block at its first event. Blocks of text have no `contentBlockStart`."""
        if index in self._indexes and not tool_use:
            return
        if _is_hidden(tool_use, self.injected):
            self._indexes[index] = None
            self._hides = self._spliced = True
            return
        if (call_id := _maybe_client_call({"toolUse": tool_use})) is not None:
            self._client_ids.append(call_id)
            self._client_calls = True
        visible_index = self._next_index if self._spliced else index
        self._indexes[index] = visible_index
        self._next_index = visible_index + 1

    def _renumbered(self, raw: bytes) -> bytes:
        if not self._spliced:
            return raw
        framing = framing_of_event(raw)
        name, data = framing.parse(raw)
        try:
            members = event_members(data or b"")
        except (NotJSON, Unreadable):
            return b"" if self.shows_call(raw) else raw
        if INDEX not in members:
            return raw
        index = as_count(members.get(INDEX))
        if index not in self._indexes:
            self._open(index, {})
        visible = self._indexes[index]
        if visible is None:
            return b""
        return raw if visible == index else framing.changed(raw, name, members.replaced({INDEX: b"%d" % visible}))

    def _measured(self, metadata: dict[str, Any]) -> None:
        if usage := as_dict(metadata.get("usage")):
            self._usages.append(usage)
        self._latency.append(as_count(as_dict(metadata.get("metrics")).get(LATENCY)))

    def large_event(self, beginning: bytes) -> bytes | None:
        return None  # a message of an AWS event stream is not divided

    def keep_large(self, raw: bytes) -> None:
        self._raw.append(raw)

    def end_turn(self) -> TurnEnd:
        if not self._hides:
            return TurnEnd(client_calls=self._client_ids, response_id=self._heads.id)
        whole = self._stop is not None and not self._failed
        return self._turn_end(content_of(self._raw), self._stop if whole else None)

    def finish(self) -> bytes:
        self._finished = True
        if not self._spliced:
            return b"".join(self._tail)
        if self._failed or self._stop is None:
            return b""
        end = self._changed("messageStop", self._stop | {"stopReason": self._stop_reason(self._stop)})
        if not self._usages:
            return end
        return end + self._changed("metadata", self._metadata | {"usage": self._usage(), "metrics": self._metrics()})

    def _changed(self, name: str, members: dict[str, Any]) -> bytes:
        """Return an event of the turn's end with other members."""
        framing = framing_of_event(self._tail[0])
        for raw in self._tail:
            if framing.parse(raw)[0] == name:
                return framing.changed(raw, name, encode(members))
        return framing.frame(name, encode(members))

    def _stop_reason(self, ended: Mapping[str, Any]) -> str:
        """Return the stop reason. `tool_use` is replaced if no call is visible: clients treat it as an error."""
        reason = as_text(ended.get("stopReason"))
        return "end_turn" if reason == "tool_use" and not self._client_calls else reason

    def _usage(self) -> dict[str, Any]:
        usage = combined_usage(self._usages, CONVERSATION, WORK)
        if TOTAL in usage:  # the first turn's includes its input, with or without cached tokens
            first = self._usages[0]
            usage[TOTAL] = max(0, as_count(first.get(TOTAL)) - as_count(first.get(WORK))) + as_count(usage.get(WORK))
        return usage

    def _metrics(self) -> dict[str, Any]:
        return as_dict((self._metadata or self._last).get("metrics")) | {LATENCY: sum(self._latency)}

    def keepalive(self) -> bytes:
        # AWS's SDKs skip events of an unknown type. Some clients parse the payload before they look at the type.
        return self.framing.frame("ping", b"{}")

    # --- one body ---------------------------------------------------------------------------------------------

    def take_body(self, body: dict[str, Any]) -> TurnEnd:
        self._first, self._last = self._first or body, body
        self._measured(body)
        blocks = [as_dict(block) for block in as_list(_message(body).get("content"))]
        visible = [block for block in blocks if not _is_hidden(as_dict(block.get("toolUse")), self.injected)]
        self._spliced = self._spliced or len(visible) < len(blocks)
        self._visible += visible
        end = self._turn_end(blocks, body)
        self._client_calls = self._client_calls or bool(end.client_calls)
        return end

    def body(self) -> dict[str, Any]:
        if not self._spliced:
            return self._first
        kept = {name: value for name, value in self._first.items() if name not in ENDING}
        output = as_dict(kept.get("output")) | {"message": _message(self._first) | {"content": self._visible}}
        ended = {name: self._last[name] for name in ENDING if name in self._last}
        usage = {"usage": self._usage(), "metrics": self._metrics()} if self._usages else {}
        return kept | {"output": output, "stopReason": self._stop_reason(self._last)} | usage | ended

    def events_of(self, body: dict[str, Any], *, usage: bool) -> Iterable[tuple[str, Any]]:
        return events_of(body)

    def body_of(self, events: Sequence[bytes]) -> dict[str, Any]:
        members: dict[str, Any] = {}
        role = "assistant"
        for name, event in decoded(events):
            if name == "messageStart":
                role = as_text(event.get("role")) or role
            elif name in ("messageStop", "metadata"):
                members |= {member: value for member, value in event.items() if member != "p"}  # padding
        return {"output": {"message": {"role": role, "content": content_of(events)}}} | members

    def _turn_end(self, blocks: list[dict[str, Any]], ending: Mapping[str, Any] | None) -> TurnEnd:
        """`ending` has the stop reason. None: the turn was truncated."""
        blocks = [self._valid(block, place) for place, block in enumerate(blocks)]
        calls, client_calls = divide_calls(blocks, self._maybe_call, _maybe_client_call)
        whole = ending is not None and as_text(ending.get("stopReason")) not in CUT_SHORT
        return TurnEnd(
            calls=calls if whole else [],
            client_calls=client_calls,
            content=blocks,
            response_id=self._heads.id,
        )

    def _maybe_call(self, block: dict[str, Any], anchor: str | None) -> Call | None:
        use = as_dict(block.get("toolUse"))
        if not _is_hidden(use, self.injected):
            return None
        given = called_input(use.get("input"))
        return Call(as_text(use.get("toolUseId")), as_text(use.get("name")), given, block, anchor)

    def _valid(self, block: dict[str, Any], place: int) -> dict[str, Any]:
        """Return a block as a request may contain it: a call with an id, a valid name, and an object as its input."""
        use = as_dict(block.get("toolUse"))
        if not use:
            return block
        valid = use | {"input": valid_input(use.get("input"))}
        if _is_hidden(use, self.injected):
            call_id = as_text(use.get("toolUseId")) or call_id_for(self._heads.id, place, block)
            valid |= {"toolUseId": call_id, "name": valid_name(as_text(use.get("name")))}
        return {"toolUse": valid}


def _message(body: Mapping[str, Any]) -> dict[str, Any]:
    return as_dict(as_dict(body.get("output")).get("message"))


def _is_hidden(tool_use: Mapping[str, Any], injected: Collection[str]) -> bool:
    return as_text(tool_use.get("name")) in injected and tool_use.get("type") != "server_tool_use"


def _maybe_client_call(block: Mapping[str, Any]) -> str | None:
    use = as_dict(block.get("toolUse"))
    return as_text(use.get("toolUseId")) if use and use.get("type") != "server_tool_use" else None
