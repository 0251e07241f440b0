"""One interception: the request, the turns that answer it, and its end. Values in, records out.

    Exchange(request) ── start ──▶ InterceptionStarted
       turn: open_answer ─▶ feed … ─▶ (terminal event | end of body | cut)
       end ──▶ TokenUsage, UserPrompt, ToolUsage, ModelThought …, InterceptionEnded

An answer is complete when its terminal event has been read, because many clients disconnect right after it. The
records of a turn are emitted at that event, before it is sent on. What happens to the connection later has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from aibridge_addon import records
from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import (
    NOTHING,
    UNREAD_USAGE,
    AnswerText,
    Output,
    RequestReading,
    Thought,
    ToolCall,
    Usage,
)
from aibridge_addon.dialects.history import History, RequestHistory
from aibridge_addon.dialects.limits import limits_in_event
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.buffers import Share
from aibridge_addon.interception.clock import never_back
from aibridge_addon.interception.origin import Origin
from aibridge_addon.interception.plan_limits import Said
from aibridge_addon.interception.routing import Route
from aibridge_addon.interception.sale import Sale
from aibridge_addon.interception.scope import Scope
from aibridge_addon.interception.tap import OnEvent, OnPartial, OnPiece, Tap, ignore
from aibridge_addon.interception.thread_keys import key_of_answer, keys_of_call, keys_of_request
from aibridge_addon.interception.turn_times import TurnTimes
from aibridge_addon.records import MAX_MODEL, Emit
from aibridge_addon.wire.framing import SERVER_SENT, Framing
from aibridge_addon.wire.json_object import JSONObject

CUT_OFF = "the answer was cut off before the call was complete"
MAX_ERROR_LENGTH = 2000
"""Characters. Longer error messages of a provider are cut."""


class Exchange:
    """One interception. Call its methods in order. `end` may be called more than once; only the first call counts."""

    def __init__(
        self,
        id: str,
        route: Route,
        request: RequestReading,
        origin: Origin,
        *,
        emit: Emit,
        limits: Limits,
        now: Callable[[], datetime],
        attempts: Attempts | None = None,
        on_partial: OnPartial = ignore,
        on_limits: Said | None = None,
        texts: bool = True,
        share: Share | None = None,
    ) -> None:
        """`now` is a clock in UTC. `on_partial` is called once for each answer that cannot be read in full.

        `on_limits` takes limits of the plan that a stream names. `texts`: record the texts that the model writes for
        the user. `share` counts the bytes of the answers that are kept.
        """
        assert route.dialect is not None
        self.id = id
        self.route = route
        self.request = request
        self.scope = Scope(
            route.provider.name,
            origin.actor.id,
            route.dialect,
            origin.credential,
            session=origin.client_session_id or "",
            agent=origin.agent_id or "",
        )
        self.emit = emit
        self.now = never_back(now)
        self.ended = False
        self.turns = 0
        self.tap: Tap | None = None
        self.hidden_calls: Collection[str] = ()
        """Names of tools whose calls are recorded after the invocation, not when the model makes them."""
        self.hidden_calls_cut = False
        """The turn's calls of these tools were cut off, so they are not invoked and are recorded with the turn."""
        self.last_records: Callable[[], Iterable[records.Record]] = tuple
        """Returns the records that are emitted right before the end."""
        self.time_to_first_byte_ms: int | None = None
        self.when_pending: Callable[[str], None] | None = None
        """Called if the provider goes on in the background, with the response's id. Another request brings the end."""
        self.when_ended: Callable[[int | None, str | None], None] | None = None
        """Called once at the end, with the last answer's status and the error type."""
        self.times: TurnTimes | None = None
        """Measures the turns. None: traces are off."""
        self._turn_open = False
        """An answer has begun, and its records have not been emitted yet."""
        self.actor = origin.actor
        self._dialect = route.dialect
        self._origin = origin
        self._metadata = {**origin.details, **origin.actor.metadata, **origin.groups}
        self.started_at: datetime | None = None
        """None: the start was not emitted yet."""
        self.limits = limits
        self.host = origin.upstream_host or ""
        """The host that the request goes to."""
        self.sale = Sale(route, origin.upstream_host)
        self._attempts = attempts or Attempts()
        self._on_partial = on_partial
        self._on_limits = on_limits
        self._texts = texts
        self.share = share
        self._first_response_id: str | None = None
        self._http_status: int | None = None
        self._sequence = 0
        self._places: list[tuple[ToolCall, int]] = []
        """The current turn's hidden calls, and their places in the interception's sequence."""
        self._model: str | None = None
        self._end_is_due = False
        """`close` has begun, and the end has not been emitted."""

    def start(self) -> None:
        """Emit the start of the interception."""
        origin, route = self._origin, self.route
        now = self.now()
        if self.times is not None:
            self.times.begin()
        self.emit(
            records.InterceptionStarted(
                id=self.id,
                initiator_id=origin.actor.id,
                provider=route.provider.type,
                provider_name=route.provider.name,
                model=self.request.model,
                client=origin.client,
                client_session_id=origin.client_session_id,
                user_agent=origin.user_agent,
                route=route.template,
                streaming=self.request.streaming,
                credential_kind=origin.credential_kind,
                credential_hint=origin.credential_hint,
                correlating_tool_call_id=self.request.correlating_tool_call_id,
                metadata=self._metadata,
                started_at=now,
                upstream_host=origin.upstream_host,
                agent_id=origin.agent_id,
                prompt_id=origin.prompt_id,
                project=origin.project,
                request_class=origin.request_class,
                billing=origin.billing,
                thread_keys=keys_of_request(self.scope, self.request),
            )
        )
        self.started_at = now
        for result in self.request.tool_results:
            self.emit(
                records.ToolResult(
                    interception_id=self.id,
                    provider_tool_call_id=result.call_id,
                    result=result.text,
                    is_error=result.is_error,
                    truncated=result.truncated,
                    created_at=now,
                )
            )
        if self.request.tool_results:  # an answer may take long, and the texts are not small
            self.request = replace(self.request, tool_results=())

    @property
    def history(self) -> History | None:
        """Reads the history in the dialect's requests."""
        return self._dialect.history

    @property
    def needs_history(self) -> bool:
        """Whether only the complete history separates conversations, because the client names no session."""
        return self.history is not None and not self.scope.session

    def note(self, **metadata: Any) -> None:
        """Add to the interception's metadata. Call it before `start`. Members that are there stay."""
        self._metadata = metadata | self._metadata

    def trace(self, body: JSONObject, history: RequestHistory) -> None:
        """Take the request's place in its conversation from its complete history. Call it before `start`."""
        if not self.needs_history or self.history is None:
            return
        results = self.request.tool_results
        call_ids = [result.call_id for result in results] or list(filter(None, [self.request.answered_call_id]))
        result_of = self.history.places_by_trail(body, history, call_ids) if call_ids else ()
        self.request = replace(self.request, position=history.position, result_of=result_of)

    def _call_keys(self, call: ToolCall) -> tuple[str, ...]:
        return keys_of_call(self.scope, self.request, self._first_response_id or "", call)

    def open_answer(
        self,
        status: int,
        content_type: str,
        content_encoding: str,
        headers: Mapping[str, str] = NOTHING,
        on_event: OnEvent | None = None,
        on_piece: OnPiece | None = None,
    ) -> None:
        """Begin to read the answer of a turn, after its head has arrived. `headers` ignores case."""
        reader = self._dialect.answer_reader(texts=self._texts)
        reader.head(headers)
        self.turns += 1
        self._turn_open = True
        self._http_status = status
        if self.times is not None:
            self.times.answered(status)
        self.tap = Tap(
            reader,
            status=status,
            content_type=content_type,
            content_encoding=content_encoding,
            limits=self.limits,
            streaming=self.request.streaming,
            on_event=on_event,
            on_piece=on_piece,
            on_partial=self._on_partial,
            on_first=self.times.chunk_came if self.times is not None else None,
            share=self.share,
        )

    def first_byte_came(self) -> None:
        """Measure the time to the first byte by the exchange's own clock, from its start on."""
        if self.started_at is not None and self.time_to_first_byte_ms is None:
            waited = self.now() - self.started_at
            self.time_to_first_byte_ms = max(0, round(waited / timedelta(milliseconds=1)))

    @property
    def streaming(self) -> bool:
        """Whether the current answer is a stream of events."""
        return self.tap is not None and self.tap.streaming

    @property
    def status(self) -> int | None:
        """The status of the current answer; None before its head."""
        return self._http_status

    @property
    def framings(self) -> Mapping[str, Framing]:
        """The framings that a streamed answer may have, by content type."""
        return self.tap.reader.framings if self.tap is not None else SERVER_SENT

    @property
    def succeeded(self) -> bool:
        """Whether the status of the current answer is no error."""
        return self._http_status is not None and self._http_status < 400

    def discard_answer(self) -> None:
        """Drop an answer that refuses what the bridge added. The client's request has not been answered yet."""
        self.turns -= 1
        self.tap = None
        self._turn_open = False

    def feed(self, data: bytes, last: bool = False) -> int | None:
        """Read answer bytes. `last` means that they complete the body's length.

        Returns:
            The offset at which the answer's end begins, after its records have been emitted. None before the end.
        """
        if self.ended:
            return None
        assert self.tap is not None
        end = self.tap.feed(data)
        if end is not None:
            self.conclude()
        elif last:
            self.answer_ended()
            end = 0
        return end

    def feed_event(self, data: bytes, *, terminal: bool) -> None:
        """Read an event that came as a message of its own. `terminal`: it is the last, even if it cannot be read."""
        if self.times is not None:
            self.times.chunk_came()
        if self.tap is not None and not self.ended and self.tap.event(data):
            self.conclude()
        elif terminal:
            self.answer_ended()

    def answer_ended(self) -> None:
        """Take the proper end of the upstream's answer."""
        if not self.ended and self.tap is not None:
            self.tap.finish()
            self.conclude()

    def end(self, error_type: str, message: str) -> None:
        """End the interception: the client or the upstream disconnected, or the request was refused."""
        if self.ended:
            return
        if self.tap is not None and self._turn_open:
            self.tap.finish(cut=True)
            if self.tap.reader.reading.ended or self._is_pending:
                self.conclude()
                return
        self.close(error_type, message)

    def conclude(self) -> None:
        """End the interception by what was read of its last answer."""
        assert self.tap is not None
        reading = self.tap.reader.reading
        if reading.error is not None:
            self.close(reading.error.type, reading.error.message)
        elif self._is_pending:
            self._suspend()
        elif reading.ended or not self.tap.readable:
            self.close(None, None)
        else:
            self.close("incomplete_stream", "the answer ended before its terminal event")

    @property
    def _is_pending(self) -> bool:
        """Whether the provider goes on in the background, so that this answer is not the end."""
        if self.tap is None or self.when_pending is None:
            return False
        reading = self.tap.reader.reading
        in_background = self.request.background or not self.tap.streaming
        return in_background and reading.running and bool(reading.response_id)

    def _suspend(self) -> None:
        """Leave the interception open. A later request will read the rest of it and its end."""
        assert self.tap is not None and self.when_pending is not None
        self.ended = True
        self._turn_open = False
        self._emit_prompt()
        self.when_pending(self.tap.reader.reading.response_id)
        if self.when_ended is not None:
            self.when_ended(self._http_status, None)

    def _emit_prompt(self) -> None:
        if self._origin.prompt is not None:
            self.emit(records.UserPrompt(self.id, self._first_id(), self._origin.prompt, self.now()))

    def close(self, error_type: str | None, message: str | None) -> None:
        """Emit the remaining records and the end."""
        self.ended = self._end_is_due = True
        self._emit_prompt()
        if self.tap is not None and self._turn_open:
            self.end_turn(error_type)
        for record in self.last_records():
            self.emit(record)
        self._emit_end(error_type, message)

    def fail(self, error_type: str, message: str) -> None:
        """End the interception after an exception, which `close` itself may have raised. Never raises."""
        with suppress(Exception):  # the first exception was reported
            if not self.ended:
                self.close(error_type, message)
        with suppress(Exception):
            if self._end_is_due:
                self._emit_end(error_type, message)

    def _emit_end(self, error_type: str | None, message: str | None) -> None:
        self._end_is_due = False
        answer_id = self._first_id()
        key, attempts = self._attempts.key, self._attempts.reported
        self.emit(
            records.InterceptionEnded(
                interception_id=self.id,
                status="completed" if error_type is None else "failed",
                model=self._model,
                http_status=self._attempts.last_status if self._http_status is None else self._http_status,
                error_type=error_type,
                error_message=message[:MAX_ERROR_LENGTH] if message else None,
                turns=self.turns,
                ended_at=self.now(),
                credential_hint=key.hint if key is not None else None,
                metadata={**self._metadata, "attempts": list(attempts)} if attempts else None,
                time_to_first_byte_ms=self.time_to_first_byte_ms,
                thread_keys=(key_of_answer(self.scope, answer_id),)
                if self.request.position.named and answer_id
                else (),
            )
        )
        if self.when_ended is not None:
            self.when_ended(self._http_status, error_type)

    def _first_id(self) -> str:
        """Return the first turn's response id; empty if it is not known yet."""
        if self._first_response_id is not None:
            return self._first_response_id
        return self.tap.reader.reading.response_id if self.tap is not None else ""

    def end_turn(self, error_type: str | None = None) -> None:
        """Emit the records of the current turn. `error_type`: why the interception ends with it as failed."""
        assert self.tap is not None
        reading = self.tap.reader.reading
        self._turn_open = False
        reading.model = reading.model[:MAX_MODEL]
        for iteration in reading.iterations:
            iteration.model = iteration.model[:MAX_MODEL]
        if self.tap.beyond:
            self.emit(records.LeftUnread(self.tap.beyond))
        if reading.limits and self._on_limits is not None:
            self._on_limits(limits_in_event(reading.limits, self.now()))
        self._model = reading.model or None
        response_id = reading.response_id
        if self._first_response_id is None:
            self._first_response_id = response_id
        model = self.sale.model(self.request.model, reading.model)
        if reading.usage is not None:
            self._emit_usage("answer", model, reading.usage)
        elif not self.tap.complete and self.succeeded and (reading.ended or not self.tap.readable):
            self._emit_usage("answer", model, Usage(unpriced=UNREAD_USAGE))
        for iteration in reading.iterations:
            self._emit_usage(iteration.kind, iteration.model or model, iteration.usage)
        self._places = []
        now = self.now()
        for part in reading.output:
            self._emit_output(part, response_id, now)
        if self.times is not None:
            self.emit(self.times.ended(self.id, self.turns, self.tap, error_type))

    def _emit_usage(self, kind: str, model: str, usage: Usage) -> None:
        assert self.tap is not None
        reading = self.tap.reader.reading
        whole = reading.finished and self.tap.complete
        if usage is reading.usage:
            terms = self.sale.terms(self.request, model, usage, reading.tool_calls if whole else None)
        else:
            terms = self.sale.terms_beside(self.request, model, usage)
        self.emit(
            records.TokenUsage(
                interception_id=self.id,
                provider_response_id=reading.response_id,
                provider=self.route.provider.type,
                provider_name=self.route.provider.name,
                model=model,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_input_tokens=usage.cache_read_input_tokens,
                cache_write_input_tokens=usage.cache_write_input_tokens,
                completeness="complete" if whole and usage.complete else "partial",
                extra={**self.request.billed_by, **usage.extra},
                created_at=self.now(),
                turn=self.turns,
                kind=kind,
                stop_reason=reading.stop_reason or None,
                vendor=self.sale.vendor,
                terms=terms,
                unpriced=usage.unpriced,
                dialect=self._dialect.name,
            )
        )

    def _emit_output(self, part: Output, response_id: str, now: datetime) -> None:
        place = self.next_place()
        if isinstance(part, Thought):
            self.emit(records.ModelThought(self.id, response_id, part.content, part.source, now, place))
        elif isinstance(part, AnswerText):
            self.emit(records.Answer(self.id, response_id, part.content, part.truncated, now, place))
        elif part.name in self.hidden_calls and not self.hidden_calls_cut:
            self._places.append((part, place))
        else:
            is_hidden = part.name in self.hidden_calls
            self.emit(
                records.ToolUsage(
                    interception_id=self.id,
                    provider_response_id=response_id,
                    provider_tool_call_id=part.call_id,
                    tool=part.name,
                    input=part.input,
                    injected=is_hidden,
                    invocation_error=CUT_OFF if is_hidden else None,
                    server_name=part.server_name,
                    metadata={"server_side": True} if part.server_side else {},
                    created_at=now,
                    sequence=place,
                    thread_keys=() if part.server_side else self._call_keys(part),
                )
            )

    def place_of(self, call_id: str, name: str) -> int:
        """Return the place of one of the turn's hidden calls, each once. Some servers give calls no or equal ids."""
        for number, (call, place) in enumerate(self._places):
            if call.name == name and call.call_id in (call_id, ""):
                del self._places[number]
                return place
        return self.next_place()

    def next_place(self) -> int:
        """Return the next place in the sequence of the interception's rows. The prompt has place 0."""
        self._sequence += 1
        return self._sequence
