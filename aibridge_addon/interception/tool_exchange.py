"""One interception with injected tools: an `Exchange`, and the client's view of its turns. Values in, bytes out.

    turn's bytes ─▶ feed ─▶ tap ─ each event ─▶ splice ─▶ bytes for the client
    turn's end   ─▶ ToolLoop ─┬─ calls are `waiting` ─▶ tools_ran ─▶ the next turn's request
                              └─ the exchange ends    ─▶ ending: the held end of the answer

A blocking answer goes through `take_body` instead. `merged_body` returns the answer of all turns together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from aibridge_addon import records
from aibridge_addon.dialects.base import NOTHING, AnswerError
from aibridge_addon.dialects.client_results import cut_text
from aibridge_addon.dialects.turns import Invocation, Text
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.tap import Tap
from aibridge_addon.interception.tool_loop import ToolLoop

Keep = Callable[[ToolLoop], Iterable[records.Record]]
"""Keeps what the client's next requests need from a loop. Returns the records of it."""


class ToolExchange:
    """The turns of one interception. The model's calls to injected tools run between them."""

    def __init__(self, exchange: Exchange, loop: ToolLoop, keep: Keep) -> None:
        self.exchange = exchange
        self.loop = loop
        self.plain = False
        """The first answer is an error. It is sent on as if no tools were injected."""
        self.waiting = False
        """The last turn has called injected tools, and their results are not complete."""
        self.error: AnswerError | None = None
        """Error returned by a later upstream turn."""
        self._keep = keep
        self._shown = bytearray()
        """Bytes for the client that were not returned yet."""
        self._names_ours = False
        """The last blocking answer names an injected tool: OpenAI's responses repeat the request's tools."""
        exchange.hidden_calls = loop.splice.injected
        exchange.last_records = self._kept

    def open_answer(
        self, status: int, content_type: str, content_encoding: str, headers: Mapping[str, str] = NOTHING
    ) -> None:
        """Begin to read the answer of a turn, as `Exchange.open_answer` does."""
        self.plain = status >= 400 and self.exchange.turns == 0
        on_event = None if self.plain else self._show
        self.exchange.open_answer(status, content_type, content_encoding, headers, on_event=on_event)
        if not self.plain:
            self.loop.splice.begin_turn()

    def discard_answer(self) -> None:
        """Drop an answer that refuses what the bridge added. The client's request has not been answered yet."""
        self.plain = False
        self.exchange.discard_answer()

    # --- a stream ---------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """Read bytes of a stream. Return the bytes for the client. `waiting` and `ended` may change.

        After `ending`, these are the bytes that the provider sends behind the end of the answer.
        """
        if self.waiting:
            return b""
        if self._tap.feed(data) is not None and not self.exchange.ended:
            self._turn_over(self._tap)
        return self._taken()

    def stream_ended(self) -> bytes:
        """Read the end of a stream. Return the remaining bytes for the client."""
        if self.waiting:
            return b""
        tap = self._tap
        tap.finish()
        if not self.exchange.ended and tap.reader.reading.ended:
            self._turn_over(tap)
        elif not self.exchange.ended:
            self.exchange.conclude()
        return self._taken()

    @property
    def _tap(self) -> Tap:
        assert self.exchange.tap is not None
        return self.exchange.tap

    def _show(self, raw: bytes, name: str, event: Any) -> None:
        self._shown += self.loop.splice.event(raw, name, event)

    def _taken(self) -> bytes:
        taken = bytes(self._shown)
        self._shown.clear()
        return taken

    @property
    def unreadable(self) -> str | None:
        """Why the stream cannot be spliced any further; None if it can. Part of it could not be read."""
        tap = self.exchange.tap
        if tap is None or not tap.streaming or self.exchange.ended or (tap.readable and not tap.dropped):
            return None
        return "it cannot be decoded" if not tap.readable else "an event is too large"

    def ending(self) -> bytes:
        """Return the held end of the spliced answer."""
        return self.loop.splice.finish()

    def keepalive(self) -> bytes:
        """Return keep-alive bytes for a waiting client."""
        return self.loop.splice.keepalive()

    # --- one body ---------------------------------------------------------------------------------------------

    def take_body(self, content: bytes) -> None:
        """Read a whole blocking answer. `waiting` and `ended` may change."""
        tap = self._tap
        tap.feed(content)
        tap.finish()
        if not tap.readable:
            self.exchange.close("undecodable_answer", "the answer cannot be decoded")
            return
        message = msgspec.json.encode(tap.message)
        self._names_ours = any(name.encode() in message for name in self.loop.splice.injected)
        self._turn_over(tap)

    def merged_body(self) -> bytes | None:
        """Return the blocking answer of all turns together; None: the last upstream answer is sent on unchanged."""
        loop, tap = self.loop, self.exchange.tap
        if tap is None or tap.message is None:
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
        """Continue with a turn's injected calls, or end the exchange."""
        loop = self.loop
        if tap.reader.reading.error is not None or (not tap.streaming and tap.message is None):
            self.exchange.conclude()
            return
        loop.turn_ended(loop.splice.take_body(tap.message) if tap.message else loop.splice.end_turn())
        if loop.pending:
            self.exchange.end_turn()
            self.waiting = True
        else:
            self.exchange.conclude()

    def tools_ran(self, invocations: Sequence[Invocation]) -> bytes | None:
        """Record the turn's invocations. Return the next turn's request; None if the answer ends."""
        self.tools_stopped(invocations)
        request = self.loop.results([invocation.result for invocation in invocations])
        if request is None:
            self.exchange.close(None, None)
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
                metadata={"result_truncated": True} if truncated else {},
            )
        )

    def _kept(self) -> Iterable[records.Record]:
        return self._keep(self.loop) if self.loop.response_ids else ()
