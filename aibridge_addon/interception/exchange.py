"""One interception: what was asked, the turns that answered it, and how it ended. Values in, records out.

    Exchange(request) ── start ──▶ InterceptionStarted
       turn: open_answer ─▶ feed … ─▶ (terminal event | end of body | cut)
       end ──▶ TokenUsage, UserPrompt, ToolUsage, ModelThought …, InterceptionEnded

An answer is complete when its terminal event has been read, for many clients hang up right after it. So the records
of a turn are emitted at that event, before it is passed on; whatever happens to the connection later changes nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from aibridge_addon import records
from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import NOTHING, AnswerError, RequestReading
from aibridge_addon.dialects.turns import Invocation
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.routing import Route
from aibridge_addon.interception.tap import Tap
from aibridge_addon.interception.tool_loop import ToolLoop
from aibridge_addon.records import Emit

MAX_ERROR_LENGTH = 2000
"""Characters of a provider's error message that are kept."""


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Origin:
    """Who sent the request, and with what."""

    actor: Actor
    client: str
    client_session_id: str | None
    user_agent: str | None
    credential_kind: records.CredentialKind
    credential_hint: str
    prompt: str | None
    """The person's prompt; None where no person is behind the request."""


Leaves = Callable[[ToolLoop], Iterable[records.Record]]


class Exchange:
    """One interception. Its methods are called in order; `end` may be called twice, the first call counts."""

    def __init__(
        self,
        route: Route,
        request: RequestReading,
        origin: Origin,
        *,
        emit: Emit,
        limits: Limits,
        now: Callable[[], datetime] = utc_now,
        leaves: Leaves | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        """`leaves` tells what a loop leaves for the client's next requests; `attempts` are those that will be made."""
        assert route.dialect is not None
        self.id = str(uuid.uuid4())
        self.route = route
        self.request = request
        self.ended = False
        self.error: AnswerError | None = None
        """With what a later turn was answered instead."""
        self._names_ours = False
        """The last blocking answer names an injected tool: OpenAI's responses repeat the request's tools."""
        self.waiting = False
        """A turn has called injected tools, which have not all been run yet."""
        self.turns = 0
        self._turn_open = False
        """An answer has begun whose rows have not been emitted yet."""
        self.tap: Tap | None = None
        self._dialect = route.dialect
        self._origin = origin
        self._emit = emit
        self._limits = limits
        self._now = now
        self.loop: ToolLoop | None = None
        """Set where tools are injected: the model's calls to them are run in between turns."""
        self._leaves = leaves
        self.when_ended: Callable[[int | None, str | None], None] | None = None
        """Called once, with the last answer's status and the error's type."""
        self._attempts = attempts or Attempts()
        self._first_response_id: str | None = None
        self._http_status: int | None = None
        self._model: str | None = None

    def start(self) -> None:
        """Emit that the interception began."""
        origin, route = self._origin, self.route
        self._emit(
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
                started_at=self._now(),
            )
        )

    def open_answer(
        self, status: int, content_type: str, content_encoding: str, headers: Mapping[str, str] = NOTHING
    ) -> None:
        """The head of an upstream answer has arrived: a turn begins to be answered. `headers` ignore case."""
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
            splice=self.loop.splice if self.loop is not None else None,
        )
        if self.loop is not None:
            self.loop.begin_turn()

    @property
    def streaming(self) -> bool:
        """Whether the answer that has begun is a stream of events."""
        return self.tap is not None and self.tap.streaming

    def discard_answer(self) -> None:
        """The answer was to something that we had added: the client's request has not been answered yet."""
        self.turns -= 1
        self.tap = None
        self._turn_open = False

    # --- with injected tools ----------------------------------------------------------------------------------

    def splice(self, data: bytes) -> bytes:
        """Read bytes of a stream; returns those that the client sees instead. See `waiting` and `ended` afterwards.

        After the answer's `ending`, these are what its provider sends behind its end, if anything.
        """
        if self.waiting:
            return b""
        assert self.tap is not None
        if self.tap.feed(data) is not None and not self.ended:
            self._turn_over()
        return self.tap.taken()

    def splice_ended(self) -> bytes:
        """The stream has ended; returns what the client sees of its rest."""
        if self.waiting:
            return b""
        assert self.tap is not None
        self.tap.finish()
        if not self.ended and self.tap.reader.reading.ended:
            self._turn_over()
        elif not self.ended:
            self._conclude()
        return self.tap.taken()

    @property
    def unreadable(self) -> str | None:
        """Why a stream cannot be spliced any further, if it cannot: part of it could not be read."""
        tap = self.tap
        if tap is None or not tap.streaming or self.ended or (tap.readable and not tap.dropped):
            return None
        return "it cannot be decoded" if not tap.readable else "an event is too large"

    def ending(self) -> bytes:
        """The held end of the spliced answer."""
        assert self.loop is not None
        return self.loop.splice.finish(calls_hidden=self.loop.calls_hidden)

    def merged_body(self) -> bytes | None:
        """The blocking answer of all turns together; None: the last upstream answer is the client's, as it is."""
        loop = self.loop
        if self.tap is None or self.tap.message is None:
            return None  # an error ends a blocking answer of several turns as one of a single turn
        if loop is None or not (self.turns > 1 or loop.calls_hidden or loop.held or self._names_ours):
            return None
        return msgspec.json.encode(loop.splice.body(calls_hidden=loop.calls_hidden))

    def take_error(self, content: bytes) -> None:
        """Read the error answer of a later turn: the exchange ends with it."""
        assert self.tap is not None
        self.tap.feed(content)
        self.tap.finish()
        self.error = self.tap.reader.reading.error
        self._conclude()

    def take_body(self, content: bytes) -> None:
        """Read a whole blocking answer. See `waiting` and `ended` afterwards."""
        assert self.tap is not None and self.loop is not None
        self.tap.feed(content)
        self.tap.finish()
        if not self.tap.readable:
            self._close("undecodable_answer", "the answer cannot be decoded")
            return
        told = msgspec.json.encode(self.tap.message)
        self._names_ours = any(name.encode() in told for name in self.loop.splice.injected)
        self._turn_over()

    def _turn_over(self) -> None:
        """A turn has been read to its end: go on with its injected calls, or end."""
        assert self.tap is not None and self.loop is not None
        reading, loop = self.tap.reader.reading, self.loop
        if reading.error is not None or (not self.tap.streaming and self.tap.message is None):
            self._conclude()
            return
        loop.turn_ended(loop.splice.take_body(self.tap.message) if self.tap.message else loop.splice.end_turn())
        if loop.pending:
            self._emit_turn(self.tap)
            self.waiting = True
        else:
            self._conclude()

    def tools_ran(self, invocations: Sequence[Invocation]) -> bytes | None:
        """Record what came of the turn's injected calls. Returns the next turn's request; None: the answer ends."""
        assert self.loop is not None
        self.tools_stopped(invocations)
        request = self.loop.results([invocation.result for invocation in invocations])
        if request is None:
            self._close(None, None)
        return request

    def tools_stopped(self, invocations: Sequence[Invocation]) -> None:
        """Record what came of the turn's injected calls, whether or not anybody still waits for it."""
        if self.waiting and self.tap is not None:
            for invocation in invocations:
                self._emit_invocation(invocation, self.tap.reader.reading.response_id)
        self.waiting = False

    def _emit_invocation(self, invocation: Invocation, response_id: str) -> None:
        call, tool = invocation.result.call, invocation.tool
        self._emit(
            records.ToolUsage(
                interception_id=self.id,
                provider_response_id=response_id,
                provider_tool_call_id=call.id,
                tool=tool.original_name if tool is not None else call.name,
                input=call.input,
                injected=True,
                server_name=tool.server_name if tool is not None else None,
                server_url=tool.server_url if tool is not None else None,
                invocation_error=invocation.error,
                duration_ms=invocation.duration_ms,
                created_at=self._now(),
            )
        )

    def feed(self, data: bytes, last: bool = False) -> int | None:
        """Read answer bytes; `last` says that the body's length is reached with them.

        Returns:
            The offset at which the answer's end begins, whose records have now been emitted; else None.
        """
        if self.ended:
            return None
        assert self.tap is not None
        end = self.tap.feed(data)
        if end is not None:
            self._conclude()
        elif last:
            self.answer_ended()
            end = 0
        return end

    def feed_event(self, data: bytes, *, terminal: bool) -> None:
        """Read an event that came as a message of its own; `terminal`: it is the last, even if it cannot be read."""
        if self.tap is not None and not self.ended and self.tap.event(data):
            self._conclude()
        elif terminal:
            self.answer_ended()

    def answer_ended(self) -> None:
        """The upstream has ended its answer properly."""
        if not self.ended and self.tap is not None:
            self.tap.finish()
            self._conclude()

    def end(self, error_type: str, message: str) -> None:
        """It ends here, whatever has been read: the client has gone, the upstream has, or nobody was asked."""
        if self.ended:
            return
        if self.tap is not None and self._turn_open:
            self.tap.finish()
            if self.tap.reader.reading.ended:
                self._conclude()
                return
        self._close(error_type, message)

    def _conclude(self) -> None:
        """The answer has been read to its end, well or not."""
        assert self.tap is not None
        reading = self.tap.reader.reading
        if reading.error is not None:
            self._close(reading.error.type, reading.error.message)
        elif reading.ended or not self.tap.readable:
            self._close(None, None)
        else:
            self._close("incomplete_stream", "the answer ended before its terminal event")

    def _close(self, error_type: str | None, message: str | None) -> None:
        self.ended = True
        if self._origin.prompt is not None:
            self._emit(records.UserPrompt(self.id, self._first_id(), self._origin.prompt, self._now()))
        if self.tap is not None and self._turn_open:
            self._emit_turn(self.tap)
        if self.loop is not None and self.loop.response_ids and self._leaves is not None:
            for record in self._leaves(self.loop):
                self._emit(record)
        key, told = self._attempts.key, self._attempts.told
        self._emit(
            records.InterceptionEnded(
                interception_id=self.id,
                status="completed" if error_type is None else "failed",
                model=self._model,
                http_status=self._http_status,
                error_type=error_type,
                error_message=message[:MAX_ERROR_LENGTH] if message else None,
                turns=self.turns,
                ended_at=self._now(),
                credential_hint=key.hint if key is not None else None,
                metadata={**self._origin.actor.metadata, "attempts": list(told)} if told else None,
            )
        )

        if self.when_ended is not None:
            self.when_ended(self._http_status, error_type)

    def _first_id(self) -> str:
        """The first turn's response id, as far as it is known."""
        if self._first_response_id is not None:
            return self._first_response_id
        return self.tap.reader.reading.response_id if self.tap is not None else ""

    def _emit_turn(self, tap: Tap) -> None:
        reading, now = tap.reader.reading, self._now()
        self._turn_open = False
        self._model = reading.model or None
        response_id = reading.response_id
        if self._first_response_id is None:
            self._first_response_id = response_id
        if reading.usage is not None:
            usage = reading.usage
            self._emit(
                records.TokenUsage(
                    interception_id=self.id,
                    provider_response_id=response_id,
                    provider=self.route.provider.type,
                    provider_name=self.route.provider.name,
                    model=reading.model or self.request.model,
                    input_tokens=usage.input_tokens,
                    output_tokens=usage.output_tokens,
                    cache_read_input_tokens=usage.cache_read_input_tokens,
                    cache_write_input_tokens=usage.cache_write_input_tokens,
                    completeness="complete" if reading.finished and tap.complete else "partial",
                    extra=usage.extra,
                    created_at=now,
                )
            )
        for call in reading.tool_calls:
            if self.loop is not None and call.name in self.loop.splice.injected:
                continue  # recorded when it has been run
            self._emit(
                records.ToolUsage(
                    interception_id=self.id,
                    provider_response_id=response_id,
                    provider_tool_call_id=call.call_id,
                    tool=call.name,
                    input=call.input,
                    injected=False,
                    server_name=call.server_name,
                    metadata={"server_side": True} if call.server_side else {},
                    created_at=now,
                )
            )
        for thought in reading.thoughts:
            self._emit(records.ModelThought(self.id, response_id, thought.content, thought.source, now))
