"""One interception with injected tools: an `Exchange`, and the client's view of its turns. Values in, bytes out.

    turn's bytes ─▶ feed ─▶ tap ─ each event ─▶ splice ─▶ bytes for the client
    turn's end   ─▶ ToolLoop ─┬─ calls are `waiting` ─▶ tools_ran ─▶ the next turn's request
                              └─ the exchange ends    ─▶ ending: the held end of the answer

A whole body goes through `take_body` instead. `merged_body` returns the answer of all turns together.

The client gets the form that it asked for. A turn in the other form is converted: a body into the events of a stream,
or a stream into a body. Only a single turn without injected calls is sent on as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from aibridge_addon import records
from aibridge_addon.dialects.base import NOTHING, AnswerError
from aibridge_addon.dialects.client_results import cut_text
from aibridge_addon.dialects.excerpt import Excerpt
from aibridge_addon.dialects.refusals import RATE_LIMITED, REFUSED, is_too_long
from aibridge_addon.dialects.room import Room
from aibridge_addon.dialects.turns import Invocation, Text, TurnEnd
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.tap import Tap
from aibridge_addon.interception.tool_loop import ToolLoop
from aibridge_addon.wire import sse
from aibridge_addon.wire.json_object import JSONObject, encode
from aibridge_addon.wire.sse import Piece

INCOMPLETE = AnswerError("incomplete_stream", "the upstream's answer ended before its terminal event")
UNFINISHED = AnswerError("incomplete_answer", "the upstream's answer ended without a stop reason")
TOO_LARGE = AnswerError("answer_too_large", "the upstream's answer is too large to go on with the results of its tools")
UNDECODABLE = AnswerError("undecodable_answer", "the upstream's answer cannot be decoded")

WINDOW = 256
"""Bytes of the last piece that are searched again, since a name may be divided."""
PING = b'"ping"'
"""The type of an event that is no part of an answer, as it is in the event."""
MAX_HELD = 4
"""Events that are held after an error. A failed turn has one, and perhaps `[DONE]`."""

Keep = Callable[[ToolLoop], Iterable[records.Record]]
"""Keeps what the client's next requests need from a loop. Returns the records of it."""


class ToolExchange:
    """The turns of one interception. The model's calls to injected tools run between them."""

    def __init__(self, exchange: Exchange, loop: ToolLoop, keep: Keep) -> None:
        self.exchange = exchange
        self.loop = loop
        self.plain = False
        """The first answer is an error. It is sent on as if no tools were injected."""
        self.streamed = False
        """The client gets the answer as a stream, and it has begun. False: it gets one body."""
        self.waiting = False
        """The last turn has called injected tools, and their results are not complete."""
        self.error: AnswerError | None = None
        """Why the client's answer cannot be completed. It has to be sent as an error."""
        self._keep = keep
        self._shown = bytearray()
        """Bytes for the client that were not returned yet."""
        self._message: dict[str, Any] | None = None
        """The last answer, if it is to be merged into one body."""
        self._names_ours = False
        """The last body names an injected tool: OpenAI's responses repeat the request's tools."""
        self._events: list[bytes | bytearray] = []
        """The raw events of a turn, for a client that asked for one body."""
        self._body = bytearray()
        """A turn's body so far, for a client that gets a stream."""
        self._large = bytearray()
        """An event that is too large to be read, as far as it has passed."""
        self._large_size = 0
        """Bytes of such events in this turn."""
        self._room = Room()
        """For the events of the current turn."""
        self._passes = self._blocked = self._refusal_open = False
        self._seen = False
        """The client has got something of the current turn."""
        self._held: list[tuple[bytes, str, Any]] = []
        """The events with which a turn has failed that nothing was seen of. It may be asked again."""
        self.is_repeated = False
        """The exchange waits until the request of the current turn is sent again."""
        exchange.hidden_calls = loop.splice.injected
        exchange.last_records = self._kept

    def open_answer(
        self, status: int, content_type: str, content_encoding: str, headers: Mapping[str, str] = NOTHING
    ) -> None:
        """Begin to read the answer of a turn, as `Exchange.open_answer` does."""
        self.plain = status >= 400 and self.exchange.turns == 0
        self._refusal_open = status in (*REFUSED, RATE_LIMITED) and self.exchange.turns > 0
        on_event = self._show if status < 400 else None
        on_piece = self._show_piece if status < 400 else None
        self._large_size = 0
        self._seen, self._held = False, []
        limits, share = self.exchange.limits, self.exchange.share
        self._room = Room(limits.decoded_body, share.add) if share is not None else Room(limits.decoded_body)
        self.loop.splice.keeps = True
        self.exchange.open_answer(status, content_type, content_encoding, headers, on_event=on_event, on_piece=on_piece)
        if not self.plain:
            self.loop.splice.begin_turn()
            self.loop.splice.head(headers)

    def discard_answer(self) -> None:
        """Drop an answer that refuses what the bridge added. The client has got nothing of it."""
        self.plain = False
        self.exchange.discard_answer()

    def replace_tools(self, body: JSONObject, injected: Collection[str]) -> None:
        """Replace the first request by one with other injected tools. Its answer was discarded."""
        self.loop.replace_tools(body, injected)
        self.exchange.hidden_calls = self.loop.splice.injected

    @property
    def is_refused(self) -> bool:
        """Whether a later turn was refused, and it is not decided yet whether it is asked again."""
        return self._refusal_open

    def asked_again(self, error: AnswerError) -> bytes | None:
        """Decide about a later turn that was refused. Returns its request if it is asked again."""
        self._refusal_open = False
        status = self.exchange.status
        request = self.loop.asked_again(status, error) if status is not None else None
        if request is not None:
            self.discard_answer()
        else:
            self.loop.leave_out_results()
        return request

    def wait_again(self) -> None:
        """Wait until the current turn, whose answer was discarded, is asked again. `tools_ran` returns its request."""
        self.is_repeated = self.waiting = True

    # --- a stream ---------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """Read bytes of a stream. Return the bytes for the client. `waiting` and `ended` may change.

        After `ending`, these are the bytes that the provider sends behind the end of the answer.
        """
        if self.waiting:
            return b""
        tap = self._tap
        if tap.feed(data) is not None and not self.exchange.ended:
            self._turn_over(tap)
        if not tap.streaming and tap.readable:
            self._body += data
        return self._taken()

    def stream_ended(self) -> bytes:
        """Read the end of a stream. Return the remaining bytes for the client. `error` may change."""
        if self.waiting:
            return b""
        tap = self._tap
        tap.finish()
        if self.exchange.ended:
            pass
        elif not tap.streaming:
            self._body_ended(tap, bytes(self._body))
            self._body.clear()
        elif not tap.readable:
            self._undecodable()
        elif tap.reader.reading.ended or tap.reader.reading.error is not None:
            self._turn_over(tap)
        else:
            self.exchange.conclude()
            if self.loop.splice.spliced:
                self.error = INCOMPLETE
        return self._taken()

    @property
    def _tap(self) -> Tap:
        assert self.exchange.tap is not None
        return self.exchange.tap

    def _show(self, raw: bytes, name: str, event: Any) -> None:
        has_room = self._room.take(len(raw))
        if self._tap.misread and self.loop.splice.shows_call(raw):
            self._blocked = True
        elif self.exchange.request.streaming and self._may_be_asked_again():
            self._held.append((raw, name, event))
        elif self.exchange.request.streaming:
            self.loop.splice.keeps = has_room
            shown = self.loop.splice.event(raw, name, event)
            self._shown += shown
            self._seen = self._seen or (len(shown) > 0 and not is_keep_alive(raw))
        elif has_room:
            self._events.append(raw)
        else:
            self._blocked = True

    def _may_be_asked_again(self) -> bool:
        """Whether the turn has failed because its context is full, and the client has got nothing of it."""
        if self._seen or self.exchange.turns < 2 or len(self._held) >= MAX_HELD:
            return False
        error = self._tap.reader.reading.error
        return error is not None and is_too_long(200, error)

    def _show_held(self) -> None:
        held, self._held = self._held, []
        for event in held:
            self._shown += self.loop.splice.event(*event)

    def _show_piece(self, piece: Piece, found: Excerpt | None) -> None:
        """Pass an event that is too large to be read, unless it is hidden or may contain a hidden call."""
        splice = self.loop.splice
        if not self.exchange.request.streaming:
            if not self._room.take(len(piece)):
                self._blocked = True
            elif piece.first:
                self._events.append(bytearray(piece))
            else:
                self._events[-1] += piece
            return
        shown: bytes | None = piece
        if piece.first:
            shown = splice.large_event(piece)
            self._passes = bool(shown)
            self._large.clear()
        elif self._passes and splice.shows_call(bytes(self._large[-WINDOW:]) + piece):
            shown = None
        self._large_size += len(piece)
        self._blocked = self._blocked or shown is None
        is_kept = self._large_size <= self.exchange.limits.decoded_body
        if self._passes and not self._blocked and shown:
            self._shown += shown
            self._large += piece
            if not is_kept:
                del self._large[:-WINDOW]
        if piece.last and self._large and not self._blocked:
            if is_kept:
                splice.keep_large(bytes(self._large))
            self._large.clear()
        elif found is not None and "response" in found.event:
            self._show(sse.event(found.name, encode(found.event)), found.name, found.event)

    def _taken(self) -> bytes:
        taken = bytes(self._shown)
        self._shown.clear()
        return taken

    @property
    def unreadable(self) -> str | None:
        """Why the stream cannot be spliced any further; None if it can. Part of it could not be read."""
        tap = self.exchange.tap
        if tap is None or self.exchange.ended or (tap.readable and not self._blocked and not tap.lost):
            return None
        return "it cannot be decoded" if not tap.readable else "a part with a call cannot be read"

    @property
    def within_event(self) -> bool:
        """Whether the client has got the beginning of an event without its end."""
        return bool(self._large)

    def ending(self) -> bytes:
        """Return the held end of the spliced answer."""
        return self.loop.splice.finish()

    def keepalive(self) -> bytes:
        """Return keep-alive bytes for a waiting client."""
        return self.loop.splice.keepalive()

    # --- one body ---------------------------------------------------------------------------------------------

    def take_body(self, content: bytes) -> bytes | None:
        """Read a whole body. `waiting`, `ended` and `error` may change.

        Returns:
            The bytes for a client that gets a stream; None if it gets one body, see `merged_body`.
        """
        tap = self._tap
        tap.feed(content)
        tap.finish()
        self._body_ended(tap, content)
        return self._taken() if self.streamed else None

    def _body_ended(self, tap: Tap, content: bytes) -> None:
        """End a turn that came as one body, or that becomes one. `streamed` may change."""
        reading, events, self._events = tap.reader.reading, self._events, []
        self._message = None
        if not tap.readable:
            self._undecodable()
            return
        if tap.streaming:
            whole = reading.ended and reading.error is None and not self._blocked and not tap.lost
            message = self.loop.splice.body_of([*map(bytes, events)]) if whole else None
        else:
            message = tap.message
        if self._blocked or tap.lost:
            self._too_large()
            return
        if reading.error is not None and self._asks_again(reading.error):
            return
        if reading.error is not None or message is None:
            self.exchange.conclude()
            self._failed(tap, content)
            return
        self._names_ours = self._names_injected(encode(message))
        if self.exchange.request.streaming and (self.streamed or self._names_ours):
            self.streamed = True
            for name, event in self.loop.splice.events_of(message, usage=self.exchange.request.wants_usage):
                self._show(self.loop.splice.framed(name, event), name, event)
            self._continue(self.loop.splice.end_turn())
        else:
            self._message = message
            self._continue(self.loop.splice.take_body(message))

    def _too_large(self) -> None:
        self.exchange.hidden_calls_cut = True
        self.exchange.close(TOO_LARGE.type, TOO_LARGE.message)
        self.error = TOO_LARGE

    def _undecodable(self) -> None:
        self.exchange.close(UNDECODABLE.type, UNDECODABLE.message)
        self.error = UNDECODABLE

    def _failed(self, tap: Tap, content: bytes) -> None:
        """Decide what the client gets of a body that is no answer: an error of the provider, or nothing readable."""
        error = tap.reader.reading.error
        is_providers = tap.message is not None or not self.exchange.succeeded
        is_first = self.exchange.turns == 1
        if self.streamed and is_first:
            self._shown += content
        elif self.streamed or not (is_providers or (is_first and not self._names_injected(content))):
            self.error = error or INCOMPLETE

    def _names_injected(self, content: bytes) -> bool:
        splice = self.loop.splice
        return any(name.encode() in content for name in splice.injected) or splice.names_ours(content) is not None

    def merged_body(self) -> bytes | None:
        """Return the blocking answer of all turns together; None: the last upstream answer is sent on unchanged."""
        loop = self.loop
        if self._message is None:
            return None  # an error answer is sent on, also after several turns
        if not (self.exchange.turns > 1 or loop.calls_hidden or loop.mixed or self._names_ours):
            return None
        return msgspec.json.encode(loop.splice.body())

    def take_error(self, content: bytes) -> None:
        """Read the error answer of a later turn. The exchange ends with it."""
        tap = self._tap
        tap.feed(content)
        tap.finish()
        self.error = tap.reader.reading.error
        self.exchange.conclude()

    # --- between two turns ------------------------------------------------------------------------------------

    def _turn_over(self, tap: Tap) -> None:
        """End the turn of a stream."""
        error = tap.reader.reading.error
        if error is not None and self._held and self._asks_again(error):
            return
        self._show_held()
        if error is not None:
            self.exchange.conclude()
        else:
            self._continue(self.loop.splice.end_turn())

    def _continue(self, end: TurnEnd) -> None:
        """Continue with a turn's injected calls, or end the exchange. `error` may change."""
        if self.loop.splice.hides and not self.loop.splice.keeps:
            self._too_large()
            return
        self.loop.turn_ended(end)
        self.exchange.hidden_calls_cut = not end.calls
        reading = self._tap.reader.reading
        if self.loop.pending:
            self.exchange.end_turn()
            self.waiting = True
        elif self.loop.splice.spliced and not (reading.finished and self._has_reason):
            # The client would see the end of an earlier turn, or one that no turn has sent.
            self.exchange.close(UNFINISHED.type, UNFINISHED.message)
            self.error = UNFINISHED
        else:
            self.exchange.conclude()

    def _asks_again(self, error: AnswerError) -> bool:
        """Decide about a later turn that has ended in an error under status 200, of which the client has seen nothing.

        Returns whether it is asked again, because its context is full. `tools_ran` then has its request.
        """
        if self.exchange.turns < 2 or not is_too_long(200, error):
            return False
        if self.loop.asked_again(200, error) is None:
            return False
        self.exchange.end_turn(error.type)
        self.wait_again()
        return True

    @property
    def _has_reason(self) -> bool:
        return bool(self._tap.reader.reading.stop_reason) or self.loop.splice.ends_without_reason

    def tools_ran(self, invocations: Sequence[Invocation]) -> bytes | None:
        """Record the turn's invocations. Return the next turn's request; None if the answer ends."""
        self.tools_stopped(invocations)
        if self.is_repeated:
            self.is_repeated = False
            return self.loop.request.replaced({})
        request = self.loop.results([invocation.result for invocation in invocations])
        if request is None:
            self.exchange.close(None, None)
        elif self.exchange.times is not None:
            self.exchange.times.begin()
        return request

    def tools_stopped(self, invocations: Sequence[Invocation]) -> None:
        """Record the turn's invocations, even if the client has disconnected."""
        if self.waiting and self.exchange.tap is not None:
            for invocation in invocations:
                self._emit(invocation, self.exchange.tap.reader.reading.response_id)
        self.waiting = False

    def _emit(self, invocation: Invocation, response_id: str) -> None:
        call, tool = invocation.result.call, invocation.tool
        parts = invocation.result.parts
        kind = {"error_kind": invocation.error_kind} if invocation.error_kind is not None else {}
        result, truncated = cut_text(part.text if isinstance(part, Text) else part.note for part in parts)
        self.exchange.emit(
            records.ToolUsage(
                interception_id=self.exchange.id,
                provider_response_id=response_id,
                provider_tool_call_id=call.id,
                tool=tool.original_name if tool is not None else call.name,
                input=call.input,
                injected=True,
                server_name=tool.server_name if tool is not None else None,
                server_url=tool.server_url if tool is not None else None,
                invocation_error=invocation.error,
                duration_ms=invocation.duration_ms,
                created_at=self.exchange.now(),
                sequence=self.exchange.place_of(call.id, call.name),
                result=result,
                metadata=kind | ({"result_truncated": True} if truncated else {}),
            )
        )

    def _kept(self) -> Iterable[records.Record]:
        return self._keep(self.loop) if self.loop.response_ids else ()


def is_keep_alive(raw: bytes) -> bool:
    """Return whether an event is no part of an answer: a comment, or a ping. It may not have been decoded."""
    return raw.startswith((b":", b"event: ping")) or PING in raw[:64]
