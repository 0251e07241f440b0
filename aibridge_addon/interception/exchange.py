"""One interception: the request, the turns that answer it, and its end. Values in, records out.

    Exchange(request) ── start ──▶ InterceptionStarted
       turn: open_answer ─▶ feed … ─▶ (terminal event | end of body | cut)
       end ──▶ TokenUsage, UserPrompt, ToolUsage, ModelThought …, InterceptionEnded

An answer is complete when its terminal event has been read, because many clients disconnect right after it. The
records of a turn are emitted at that event, before it is sent on. What happens to the connection later has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from aibridge_addon import records
from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import NOTHING, AnswerText, Output, RequestReading, Thought, ToolCall, Usage
from aibridge_addon.dialects.place import ANY, Place, call_digest
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.routing import Route
from aibridge_addon.interception.scope import Scope
from aibridge_addon.interception.tap import OnEvent, OnPartial, Tap, ignore
from aibridge_addon.records import Emit

MAX_ERROR_LENGTH = 2000
"""Characters. Longer error messages of a provider are cut."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The sender of a request: actor, client and credential."""

    actor: Actor
    client: str
    client_session_id: str | None
    user_agent: str | None
    credential_kind: records.CredentialKind
    credential_hint: str
    prompt: str | None
    """The person's prompt; None if no person sent the request."""
    upstream_host: str | None = None
    agent_id: str | None = None
    prompt_id: str | None = None
    project: str | None = None
    request_class: records.RequestClass | None = None
    billing: records.Billing | None = None
    credential: str = ""
    """What distinguishes the credential from all others; see `credentials/identity.py`."""


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
    ) -> None:
        """`now` is a clock in UTC. `on_partial` is called once for each answer that cannot be read in full."""
        assert route.dialect is not None
        self.id = id
        self.route = route
        self.request = request
        self.scope = Scope(
            route.provider.name, origin.actor.id, route.dialect, origin.credential, origin.client_session_id or ""
        )
        self.emit = emit
        self.now = now
        self.ended = False
        self.turns = 0
        self.tap: Tap | None = None
        self.hidden_calls: Collection[str] = ()
        """Names of tools whose calls are recorded after the invocation, not when the model makes them."""
        self.last_records: Callable[[], Iterable[records.Record]] = tuple
        """Returns the records that are emitted right before the end."""
        self.places: dict[str, int] = {}
        """Places of the current turn's hidden calls in the interception's sequence, by call id."""
        self.time_to_first_byte_ms: int | None = None
        self.when_ended: Callable[[int | None, str | None], None] | None = None
        """Called once at the end, with the last answer's status and the error type."""
        self._turn_open = False
        """An answer has begun, and its records have not been emitted yet."""
        self._dialect = route.dialect
        self._origin = origin
        self._limits = limits
        self._attempts = attempts or Attempts()
        self._on_partial = on_partial
        self._first_response_id: str | None = None
        self._http_status: int | None = None
        self._sequence = 0
        self._model: str | None = None

    def start(self) -> None:
        """Emit the start of the interception."""
        origin, route = self._origin, self.route
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
                metadata=origin.actor.metadata,
                started_at=self.now(),
                upstream_host=origin.upstream_host,
                agent_id=origin.agent_id,
                prompt_id=origin.prompt_id,
                project=origin.project,
                request_class=origin.request_class,
                billing=origin.billing,
                result_keys=self._result_keys(),
            )
        )

    def _result_keys(self) -> tuple[str, ...]:
        """Return the keys of the call whose result the request brings, the most exact one first."""
        call_id, place = self.request.correlating_tool_call_id, self.request.result_of
        if not call_id:
            return ()
        keys = [] if place is None else [self.scope.place_key("lineage", place)]
        if place is None or (self.scope.session and place.after[0] == "opening"):
            # The session is the conversation. Some clients change its opening, or a call's arguments.
            keys.append(self.scope.place_key("lineage", Place(ANY, call_id)))
        return tuple(keys)

    def _call_keys(self, call: ToolCall) -> tuple[str, ...]:
        """Return the keys under which a later request finds this call."""
        if not call.call_id:
            return ()
        digest = call_digest(call.name, call.input)
        after = self.request.position.after(self._first_response_id or "")
        places = [Place(before, call.call_id, digest if before[0] == "opening" else "") for before in (*after, ANY)]
        return tuple(self.scope.place_key("lineage", place) for place in places)

    def open_answer(
        self,
        status: int,
        content_type: str,
        content_encoding: str,
        headers: Mapping[str, str] = NOTHING,
        on_event: OnEvent | None = None,
    ) -> None:
        """Begin to read the answer of a turn, after its head has arrived. `headers` ignores case."""
        reader = self._dialect.answer_reader()
        reader.head(headers)
        self.turns += 1
        self._turn_open = True
        self._http_status = status
        self.tap = Tap(
            reader,
            status=status,
            content_type=content_type,
            content_encoding=content_encoding,
            limits=self._limits,
            on_event=on_event,
            on_partial=self._on_partial,
        )

    @property
    def streaming(self) -> bool:
        """Whether the current answer is a stream of events."""
        return self.tap is not None and self.tap.streaming

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
            self.tap.finish()
            if self.tap.reader.reading.ended:
                self.conclude()
                return
        self.close(error_type, message)

    def conclude(self) -> None:
        """End the interception by what was read of its last answer."""
        assert self.tap is not None
        reading = self.tap.reader.reading
        if reading.error is not None:
            self.close(reading.error.type, reading.error.message)
        elif reading.ended or not self.tap.readable:
            self.close(None, None)
        else:
            self.close("incomplete_stream", "the answer ended before its terminal event")

    def close(self, error_type: str | None, message: str | None) -> None:
        """Emit the remaining records and the end."""
        self.ended = True
        if self._origin.prompt is not None:
            self.emit(records.UserPrompt(self.id, self._first_id(), self._origin.prompt, self.now()))
        if self.tap is not None and self._turn_open:
            self.end_turn()
        for record in self.last_records():
            self.emit(record)
        key, attempts = self._attempts.key, self._attempts.reported
        self.emit(
            records.InterceptionEnded(
                interception_id=self.id,
                status="completed" if error_type is None else "failed",
                model=self._model,
                http_status=self._http_status,
                error_type=error_type,
                error_message=message[:MAX_ERROR_LENGTH] if message else None,
                turns=self.turns,
                ended_at=self.now(),
                credential_hint=key.hint if key is not None else None,
                metadata={**self._origin.actor.metadata, "attempts": list(attempts)} if attempts else None,
                time_to_first_byte_ms=self.time_to_first_byte_ms,
            )
        )
        if self.when_ended is not None:
            self.when_ended(self._http_status, error_type)

    def _first_id(self) -> str:
        """Return the first turn's response id; empty if it is not known yet."""
        if self._first_response_id is not None:
            return self._first_response_id
        return self.tap.reader.reading.response_id if self.tap is not None else ""

    def end_turn(self) -> None:
        """Emit the records of the current turn."""
        assert self.tap is not None
        reading, now = self.tap.reader.reading, self.now()
        self._turn_open = False
        self._model = reading.model or None
        response_id = reading.response_id
        if self._first_response_id is None:
            self._first_response_id = response_id
        if reading.usage is not None:
            self._emit_usage("answer", reading.model or self.request.model, reading.usage)
        for iteration in reading.iterations:
            self._emit_usage(iteration.kind, iteration.model or reading.model or self.request.model, iteration.usage)
        self.places = {}
        for part in reading.output:
            self._emit_output(part, response_id, now)

    def _emit_usage(self, kind: str, model: str, usage: Usage) -> None:
        assert self.tap is not None
        reading = self.tap.reader.reading
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
                completeness="complete" if reading.finished and self.tap.complete else "partial",
                extra=usage.extra,
                created_at=self.now(),
                turn=self.turns,
                kind=kind,
                stop_reason=reading.stop_reason or None,
                vendor=self.route.type.vendor,
            )
        )

    def _emit_output(self, part: Output, response_id: str, now: datetime) -> None:
        place = self.next_place()
        if isinstance(part, Thought):
            self.emit(records.ModelThought(self.id, response_id, part.content, part.source, now, place))
        elif isinstance(part, AnswerText):
            self.emit(records.Answer(self.id, response_id, part.content, part.truncated, now, place))
        elif part.name in self.hidden_calls:
            self.places[part.call_id] = place
        else:
            self.emit(
                records.ToolUsage(
                    interception_id=self.id,
                    provider_response_id=response_id,
                    provider_tool_call_id=part.call_id,
                    tool=part.name,
                    input=part.input,
                    injected=False,
                    server_name=part.server_name,
                    metadata={"server_side": True} if part.server_side else {},
                    created_at=now,
                    sequence=place,
                    result_keys=() if part.server_side else self._call_keys(part),
                )
            )

    def next_place(self) -> int:
        """Return the next place in the sequence of the interception's rows. The prompt has place 0."""
        self._sequence += 1
        return self._sequence
