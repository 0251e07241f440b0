"""Merge several turns into one chat completion (API reference, "chat.completion.chunk").

The client sees:

- the content of every turn, under the first chunk's id, with one role, one finish reason and one `[DONE]`;
- its own calls, numbered consecutively;
- the completion tokens of all turns and the prompt tokens of the first turn.

An answer of one turn without hidden calls passes byte for byte.

The name of a call may arrive in pieces. Events are held back while the name may become that of an injected tool.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aibridge_addon.dialects import openai
from aibridge_addon.dialects.base import DONE, arguments, decode_event, event_members
from aibridge_addon.dialects.chat_completions.calls import StreamedCall, StreamedCalls, function_of
from aibridge_addon.dialects.chat_completions.events import chunks_of
from aibridge_addon.dialects.chat_completions.growth import Grown
from aibridge_addon.dialects.our_calls import called_input, valid_arguments, valid_name
from aibridge_addon.dialects.turns import Call, Splice, TurnEnd, call_id_for, divide_calls
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import NotJSON, Unreadable, encode
from aibridge_addon.wire.json_values import as_count, as_dict, as_list, as_text

CUT_SHORT = frozenset(("length", "content_filter"))
"""Finish reasons of a message whose calls may be incomplete."""
HEAD_SIZE = 4096
"""Bytes. Size of the beginning of a large chunk in which these members are searched."""
HEAD = ("id", "created", "model")
"""Members that every chunk of a completion repeats."""


@dataclass(slots=True)
class _SplicedCall(StreamedCall):
    """A tool call that the client sees or not."""

    hidden: bool | None = None
    """None: the name may still become that of an injected tool."""
    index: int | None = None
    """The call's index in the client's answer, once a delta was sent."""
    whole: Grown = field(default_factory=Grown)
    """All deltas, merged."""


_Event = tuple[bytes, Any, list[_SplicedCall]]
"""An event: its verbatim bytes, its decoded data if it was decoded, and the calls of its deltas."""


class ChatSplice(Splice):
    CALL_SIGN = b'"(?:%s)"|"tool_calls"\\s*:\\s*[^n\\s]'

    def __init__(self, injected: Collection[str], own: Collection[str] = ()) -> None:
        super().__init__(injected, own)
        self._first: dict[str, Any] = {}
        """The first chunk that has an id, or the first body."""
        self._last: dict[str, Any] = {}
        self._message = Grown()
        """The visible message of all turns (blocking answers)."""
        self._choice: dict[str, Any] = {}
        self._logprobs = Grown()
        self._role_sent = False
        self._next_call = 0
        self._spliced = False
        """Whether the client's answer differs from the first turn."""
        self._work: list[dict[str, Any]] = [{}]
        """The final usage of each turn."""
        self._usage_chunk: dict[str, Any] | None = None
        self._failed = self._finished = False
        self._reset()

    def _reset(self) -> None:
        self._id = ""
        self._raw: list[bytes] = []
        self._calls = StreamedCalls(_SplicedCall)
        self._waiting: list[_Event] = []
        """Events held back until the name of a call is complete."""
        self._unsettled: dict[int, _SplicedCall] = {}
        """Calls in them whose names may still become those of injected tools, by their identity."""
        self._tail: list[_Event] = []
        """The end of the turn, which passes unchanged if no other turn follows."""
        self._reason = ""
        self._finish_chunk: dict[str, Any] | None = None
        self._over = False
        """The turn's `[DONE]` has been read."""
        self._says_something = False

    @property
    def spliced(self) -> bool:
        return self._spliced

    @property
    def ends_without_reason(self) -> bool:
        """Some servers send `[DONE]` without a finish reason."""
        return self._over and self._says_something

    def begin_turn(self) -> None:
        self._spliced = self._spliced or bool(self._first)
        self._work.append({})
        self._reset()

    @property
    def hides(self) -> bool:
        return any(call.hidden for call in self._calls.all)

    # --- a stream ---------------------------------------------------------------------------------------------

    def event(self, raw: bytes, name: str, event: Any) -> bytes:
        if self._finished or (self._over and self._spliced):
            return b"" if self._spliced else raw
        self._over = self._over or event == DONE
        if self.keeps:
            self._raw.append(raw)
        calls = [] if event is None or event == DONE else self._notice(as_dict(event))
        self._waiting.append((raw, event, calls))
        for call in calls:
            if call.hidden is None:
                self._unsettled[id(call)] = call
            else:
                self._unsettled.pop(id(call), None)
        if event == DONE or self._reason:
            self._decide()
        if self._unsettled:
            return b""
        waiting, self._waiting = self._waiting, []
        if self._spliced:  # what was held as the end came before a hidden call
            waiting, self._tail = self._tail + waiting, []
        return b"".join(self._visible_event(*event) for event in waiting)

    def _notice(self, chunk: dict[str, Any]) -> list[_SplicedCall]:
        """Read a chunk before it is decided what the client sees of it."""
        self._id = self._id or as_text(chunk.get("id"))
        if not self._first or (chunk.get("id") and not self._first.get("id")):  # Azure's first chunk has none
            self._first = chunk
        self._failed = self._failed or _fails(chunk)
        if usage := as_dict(chunk.get("usage")):
            self._work[-1] = usage
        for choice in map(as_dict, as_list(chunk.get("choices"))):
            self._reason = as_text(choice.get("finish_reason")) or self._reason
            self._says_something = self._says_something or _says_something(as_dict(choice.get("delta")))
        return [self._notice_call(delta) for delta in _call_deltas(chunk)]

    def _notice_call(self, delta: dict[str, Any]) -> _SplicedCall:
        call = self._calls.of(delta)
        complete = function_of(delta).get("arguments") or "custom" in delta or not delta
        settled = complete or not self.injected.may_begin_with(call.name)
        if call.hidden is None and settled:
            self._settle(call, custom="custom" in delta)
        return call

    def _decide(self) -> None:
        """Decide about the calls whose names are still open: no further piece will arrive."""
        for call in self._unsettled.values():
            if call.hidden is None:
                self._settle(call)
        self._unsettled.clear()

    def _settle(self, call: _SplicedCall, *, custom: bool = False) -> None:
        call.hidden = call.name in self.injected and not custom
        self._spliced = self._spliced or call.hidden

    def _visible_event(self, raw: bytes, event: Any, calls: list[_SplicedCall]) -> bytes:
        """Return the bytes that the client sees of an event."""
        if event == DONE:
            self._tail.append((raw, event, calls))
            return b""
        if self._spliced:
            return self._visible_text(raw) if event is None else self._visible_chunk(raw, as_dict(event), calls)
        for call, delta in zip(calls, _call_deltas(as_dict(event)), strict=True):
            if call.index is None:  # the event passes verbatim, so the call keeps its index
                call.index = as_count(delta.get("index"))
                self._next_call = call.index + 1
        self._role_sent = self._role_sent or b'"role"' in raw
        passed = self._released() if _says_more(raw, event) else b""
        if self._tail or _finishes(as_dict(event)):
            self._tail.append((raw, event, calls))
            return passed
        return passed + raw

    def _released(self) -> bytes:
        """Return what was held as the end. Some servers send a finish reason in every chunk."""
        held, self._tail = self._tail, []
        return b"".join(raw for raw, _, _ in held)

    def _visible_text(self, raw: bytes) -> bytes:
        """Return the client's bytes for a comment, or for a chunk that contains only text."""
        _, data = sse.parse(raw)
        if data is None:
            return raw
        try:
            if b'"role"' in raw:
                return self._visible_chunk(raw, as_dict(decode_event(data)), [])
            members = event_members(data)
        except (NotJSON, Unreadable):
            return raw
        return sse.event("", members.replaced({name: encode(self._first[name]) for name in self._head(members)}))

    def _head(self, members: Any) -> list[str]:
        return [name for name in HEAD if name in members and name in self._first]

    def _visible_chunk(self, raw: bytes, chunk: dict[str, Any], calls: list[_SplicedCall]) -> bytes:
        merged = chunk | {name: self._first[name] for name in self._head(chunk)}
        choices = as_list(chunk.get("choices"))
        if not choices:
            if as_dict(chunk.get("usage")):
                self._usage_chunk = merged
                return b""
            return raw if merged == chunk else sse.event("", encode(merged))
        if "usage" in chunk:
            merged["usage"] = None
        choice = as_dict(choices[0])
        delta = self._visible_delta(choice, calls)
        if choice.get("finish_reason"):
            self._finish_chunk = merged | {"choices": [choice | {"delta": {}}]}
            if "usage" in chunk:
                self._finish_chunk["usage"] = chunk["usage"]
            if delta and "logprobs" in choice:
                self._finish_chunk["choices"][0]["logprobs"] = None
        if not delta and not choice.get("error"):
            return b""
        return sse.event("", encode(merged | {"choices": [choice | {"delta": delta, "finish_reason": None}]}))

    def _visible_delta(self, choice: dict[str, Any], calls: list[_SplicedCall]) -> dict[str, Any]:
        """Return the visible part of a choice's delta. Empty if nothing is visible."""
        delta = dict(as_dict(choice.get("delta")))
        deltas = zip(calls, map(as_dict, as_list(delta.pop("tool_calls", None))), strict=False)
        if own := [delta | {"index": self._index(call)} for call, delta in deltas if delta and not call.hidden]:
            delta["tool_calls"] = own
        if self._role_sent:
            delta.pop("role", None)
        if not any(delta.values()):
            return {}
        self._role_sent = self._role_sent or "role" in delta
        return delta

    def _index(self, call: _SplicedCall) -> int:
        """Return the index in the client's answer of one of its own calls."""
        if call.index is None:
            call.index, self._next_call = self._next_call, self._next_call + 1
        return call.index

    def large_event(self, beginning: bytes) -> bytes | None:
        choices = beginning.find(b'"choices"', 0, HEAD_SIZE)
        if choices < 0 or self.shows_call(beginning) or self._waiting:
            return None
        if not self._spliced or self._finished or self._over:
            return b"" if self._spliced else (b"" if self._over else self._released()) + beginning
        head = beginning[:choices]
        for name in self._head(self._first):
            found = re.search(rb'"%s"\s*:\s*("[^"]*"|\d+)' % name.encode(), head)
            if found is not None:
                head = head[: found.start(1)] + encode(self._first[name]) + head[found.end(1) :]
        return head + beginning[choices:]

    def keep_large(self, raw: bytes) -> None:
        self._raw.append(raw)

    def end_turn(self) -> TurnEnd:
        self._decide()
        if not self.hides:
            client_calls = [call.id for call in self._calls.all]
            return TurnEnd(client_calls=client_calls, response_id=self._id)
        return self._turn_end(self._id, _content(self._raw), whole=not self._failed and self._reason not in CUT_SHORT)

    def finish(self) -> bytes:
        self._finished = True
        if not self._spliced:
            return self._released()
        done = sse.event("", DONE) if self._over else b""
        if self._failed or self._finish_chunk is None:
            return done
        merged = dict(self._finish_chunk)
        choice = as_dict(as_list(merged["choices"])[0])
        merged["choices"] = [choice | {"finish_reason": self._visible_reason(choice.get("finish_reason"))}]
        usage = self._usage()
        if usage and (self._usage_chunk is None or as_dict(merged.get("usage"))):
            merged["usage"] = usage
        out = sse.event("", encode(merged))
        if self._usage_chunk is not None:
            out += sse.event("", encode(self._usage_chunk | {"usage": usage}))
        return out + done

    def _visible_reason(self, reason: Any) -> Any:
        """Replace the reason `tool_calls` if no call is visible. Clients treat that as an error."""
        return "stop" if reason == "tool_calls" and not self._next_call else reason

    def keepalive(self) -> bytes:
        return b": keep-alive\n\n"

    # --- one body ---------------------------------------------------------------------------------------------

    def take_body(self, body: dict[str, Any]) -> TurnEnd:
        self._first = self._first or body
        self._last = body
        self._choice.pop("finish_reason", None)
        self._work.append(as_dict(body.get("usage")))
        grown = Grown()
        reasons = []
        for choice in map(as_dict, as_list(body.get("choices"))):  # Copilot sends text and calls as two choices
            grown.add(as_dict(choice.get("message")))
            reasons += [reason] if (reason := choice.get("finish_reason")) else []
            self._choice |= {name: value for name, value in choice.items() if name not in ("message", "logprobs")}
            self._logprobs.add({name: choice[name] for name in ("logprobs",) if name in choice})
        message = grown.whole()
        self._over, self._says_something = True, _says_something(message)
        end = self._turn_end(as_text(body.get("id")), message, whole=not CUT_SHORT.intersection(map(as_text, reasons)))
        visible = {name: value for name, value in message.items() if name != "tool_calls"}
        calls = as_list(message.get("tool_calls"))
        own = [call for call in calls if not _is_hidden(as_dict(call), self.injected)]
        self._spliced = self._spliced or len(own) < len(calls)
        self._next_call += len(own)
        self._message.add(visible | ({"tool_calls": own} if own else {}))
        return end

    def body(self) -> dict[str, Any]:
        if not self._spliced:
            return self._first
        reason = self._visible_reason(self._choice.get("finish_reason"))
        choice = self._choice | self._logprobs.whole()
        choice |= {"index": 0, "message": self._message.whole(), "finish_reason": reason}
        merged = self._first | {"choices": [choice]}
        merged |= {name: self._last[name] for name in ("system_fingerprint",) if name in self._last}
        return merged | ({"usage": usage} if (usage := self._usage()) else {})

    def events_of(self, body: dict[str, Any], *, usage: bool) -> Iterable[tuple[str, Any]]:
        return (("", chunk) for chunk in chunks_of(body, usage=usage))

    def body_of(self, events: Sequence[bytes]) -> dict[str, Any]:
        body: dict[str, Any] = {}
        choice: dict[str, Any] = {"index": 0, "message": _content(events), "finish_reason": None}
        beside_message = Grown()
        for chunk in _decoded(events):
            beside = {name: value for name, value in chunk.items() if name not in ("choices", "obfuscation")}
            body |= {name: value for name, value in beside.items() if value or name not in body}
            for part in map(as_dict, as_list(chunk.get("choices"))):
                beside_message.add({name: value for name, value in part.items() if name in ("logprobs", "error")})
                choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
        return body | {"object": "chat.completion", "choices": [choice | beside_message.whole()]}

    def _usage(self) -> dict[str, Any]:
        return openai.usage_of_turns(self._work, "prompt_tokens", "completion_tokens")

    def _turn_end(self, response_id: str, message: dict[str, Any], *, whole: bool) -> TurnEnd:
        items = [self._valid(as_dict(call)) for call in as_list(message.get("tool_calls"))]
        for place, item in enumerate(items):
            if _is_hidden(item, self.injected) and not as_text(item.get("id")):
                items[place] = item | {"id": call_id_for(response_id, place, item)}
        calls, client_calls = divide_calls(items, self._maybe_call, lambda call: as_text(call.get("id")))
        said = {"role": "assistant"} | _for_request(message) | ({"tool_calls": items} if items else {})
        return TurnEnd(calls if whole else [], client_calls, [said], response_id)

    def _valid(self, call: dict[str, Any]) -> dict[str, Any]:
        """Return a call as the history must contain it. The client's own stay as they came, if they have arguments."""
        function = as_dict(call.get("function"))
        given, name = function.get("arguments"), as_text(function.get("name"))
        if not function or (not _is_hidden(call, self.injected) and as_text(given).strip()):
            return call
        valid = {"arguments": valid_arguments(given)}
        if _is_hidden(call, self.injected):
            valid["name"] = valid_name(name)
        return call | {"function": function | valid}

    def _maybe_call(self, call: dict[str, Any], anchor: str | None) -> Call | None:
        if not _is_hidden(call, self.injected):
            return None
        function = as_dict(call.get("function"))
        tool_input = called_input(arguments(function.get("arguments")))
        return Call(as_text(call.get("id")), as_text(function.get("name")), tool_input, call, anchor)


def _for_request(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as a request may contain it: only the id of its audio."""
    if "audio" not in message:
        return message
    audio_id = as_text(as_dict(message["audio"]).get("id"))
    rest = {name: value for name, value in message.items() if name != "audio"}
    return rest | ({"audio": {"id": audio_id}} if audio_id else {})


def _decoded(events: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the chunks in raw events. Unreadable ones and `[DONE]` are skipped."""
    for raw in events:
        _, data = sse.parse(raw)
        try:
            yield as_dict(decode_event(data or b"null"))
        except (NotJSON, Unreadable):
            continue


def _content(events: Iterable[bytes]) -> dict[str, Any]:
    """Return a turn's message, merged from its chunks."""
    grown = Grown()
    grown.add({"role": "assistant", "content": None})
    calls = StreamedCalls(_SplicedCall)
    for chunk in _decoded(events):
        for delta in _call_deltas(chunk):
            calls.of(delta).whole.add({name: value for name, value in delta.items() if name != "index"})
        for choice in map(as_dict, as_list(chunk.get("choices"))):
            grown.add({n: value for n, value in as_dict(choice.get("delta")).items() if n != "tool_calls"})
    message = grown.whole()
    said = {name: value for name, value in message.items() if value != ""} | {"content": message["content"] or None}
    return said | ({"tool_calls": [call.whole.whole() for call in calls.all]} if calls.all else {})


def _call_deltas(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    deltas = (as_dict(as_dict(choice).get("delta")) for choice in as_list(chunk.get("choices")))
    return [as_dict(call) for delta in deltas for call in as_list(delta.get("tool_calls"))]


def _says_something(message: Mapping[str, Any]) -> bool:
    """Return whether a message or a delta has more than a role."""
    return any(value for name, value in message.items() if name != "role")


def _says_more(raw: bytes, event: Any) -> bool:
    """Return whether an event carries a part of the message. An event that was not decoded is text or a comment."""
    if event is None:
        return sse.parse(raw)[1] is not None
    choices = as_list(as_dict(event).get("choices"))
    return any(value for choice in choices for value in as_dict(as_dict(choice).get("delta")).values())


def _finishes(chunk: dict[str, Any]) -> bool:
    return any(as_dict(choice).get("finish_reason") for choice in as_list(chunk.get("choices")))


def _fails(chunk: dict[str, Any]) -> bool:
    """Return whether a chunk reports an error: of the whole answer, or of a choice (OpenRouter)."""
    return bool(chunk.get("error")) or any(as_dict(choice).get("error") for choice in as_list(chunk.get("choices")))


def _is_hidden(call: dict[str, Any], injected: Collection[str]) -> bool:
    return as_text(as_dict(call.get("function")).get("name")) in injected
