"""Decide, for one interception, which calls are run and whether another turn follows. Sans-io.

    turn ends ─▶ plan ─┬─ nothing to run                    ─▶ the answer ends
                       ├─ injected calls only               ─▶ run, follow-up turn
                       ├─ injected and client calls (mixed) ─▶ run, keep results, the answer ends
                       └─ a bound is reached                ─▶ the answer ends, without a trace of the calls

There are three bounds: `max_turns` upstream turns, `max_calls` calls in one turn, and the same call with the same
arguments three times in a row, within one turn or across turns. The request of the last allowed turn forbids the use of
injected tools. The size of results is bounded, too: see `result_bounds`.

A provider may refuse a later turn because of the results in it: the context is full, or it does not accept an image.
The turn is then asked again, once for each of these reasons, with shorter results or with notes in place of media.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from aibridge_addon.dialects.errors import AnswerError
from aibridge_addon.dialects.refusals import is_too_long
from aibridge_addon.dialects.turns import LEFT_OUT, Call, FollowUp, Injection, Result, Text, TurnEnd
from aibridge_addon.interception.result_bounds import UNBOUNDED, Bounds, ResultBounds, shortened, without_media
from aibridge_addon.wire.json_object import JSONObject

Change = Callable[[Sequence[Result]], tuple[Result, ...] | None]
"""Changes results that a provider refuses. None: it would change nothing."""
REPEATS = 3
"""A call with the same arguments is refused from this occurrence in a row on."""


@dataclass(frozen=True, slots=True)
class MixedTurn:
    """The results of a turn with injected and client calls. They are kept for the client's next request."""

    response_id: str
    results: tuple[Result, ...]
    client_calls: tuple[str, ...]
    content: tuple[dict[str, Any], ...]
    """The turn's complete content."""


class ToolLoop:
    def __init__(
        self,
        injection: Injection,
        body: JSONObject,
        injected: Collection[str],
        *,
        max_turns: int,
        max_calls: int = sys.maxsize,
        own: Collection[str] = (),
        bounds: Bounds = UNBOUNDED,
    ) -> None:
        """`injected`: names of the injected tools. `own`: names of the client's own tools. `bounds`: of one result."""
        self.splice = injection.splice(injected, own)
        self.pending: tuple[Call, ...] = ()
        """Calls of the last turn without results so far."""
        self.refused: tuple[Result, ...] = ()
        """Results of pending calls that are refused: repetitions, and those beyond `max_calls`."""
        self.calls_hidden = False
        """The answer ends although injected calls were made. It must not look as if results would follow."""
        self.mixed: MixedTurn | None = None
        self.hidden: list[tuple[TurnEnd, tuple[Result, ...]]] = []
        """The turns that the client never sees, each with the results of its calls."""
        self.response_ids: list[str] = []
        """Response ids of the turns that have ended."""
        self.injection = injection
        self._injected = injected
        self._first = self._body = body
        self._max_turns = max_turns
        self._max_calls = max_calls
        self._refused: dict[int, Result] = {}
        """By the place of the call."""
        self._own = own
        self._bounds = ResultBounds.of(bounds)
        self._last = False
        """Whether the next turn is the last one."""
        self._changed: set[Change] = set()
        """How the results in the last request were changed already."""
        self._in_a_row: dict[tuple[str, bytes], int] = {}
        self._end = TurnEnd()

    @property
    def first_request(self) -> JSONObject:
        """The request of the first turn."""
        return self._first

    @property
    def stores(self) -> bool:
        """Whether the request lets the provider store its answers (Responses API). That is the default."""
        return self._first.get("store") is not False

    def replace_request(self, body: JSONObject) -> None:
        """Replace the first request's body. The next turn continues from it."""
        self._first = self._body = body

    def replace_tools(self, body: JSONObject, injected: Collection[str]) -> None:
        """Replace the first request by one with other injected tools. It has not been answered yet."""
        self.replace_request(body)
        self._injected = injected
        self.splice = self.injection.splice(injected, self._own)

    def turn_ended(self, end: TurnEnd) -> None:
        """Decide which injected calls of a turn are run. They are then in `pending`."""
        self._end = end
        self.response_ids.append(end.response_id)
        if end.calls and not end.client_calls and len(self.response_ids) >= self._max_turns:
            self.calls_hidden = True
            self.hidden.append((end, tuple(_not_made(call, "the limit of turns was reached") for call in end.calls)))
            return
        self._refused = {place: _repeated(end.calls[place]) for place in self._repeats(end.calls)}
        for place in range(self._max_calls, len(end.calls)):
            self._refused[place] = _not_made(end.calls[place], f"a turn may make {self._max_calls} calls")
        self.refused = tuple(self._refused.values())
        self.pending = tuple(end.calls)

    def _repeats(self, calls: Sequence[Call]) -> set[int]:
        """Return the indexes of calls that were made too often in a row."""
        before, self._in_a_row = self._in_a_row, {}
        repeated = set()
        for place, call in enumerate(calls):
            signature = (call.name, msgspec.json.encode(call.input, order="deterministic"))
            times = self._in_a_row.get(signature, before.get(signature, 0)) + 1
            self._in_a_row[signature] = times
            if times >= REPEATS:
                repeated.add(place)
        return repeated

    @property
    def to_run(self) -> tuple[Call, ...]:
        return tuple(call for place, call in enumerate(self.pending) if place not in self._refused)

    def results(self, results: Sequence[Result]) -> bytes | None:
        """Take the results of `to_run`, in that order.

        Returns:
            The next turn's request; None if the answer ends here. The results are then in `mixed`.
        """
        run = iter(results)  # by index: some servers give calls no ids
        whole = tuple(self._refused.get(place) or next(run) for place in range(len(self.pending)))
        whole = self._bounds.within(whole)
        bound = bool(self.refused) or len(self.response_ids) + 1 >= self._max_turns
        self.pending, self.refused = (), ()
        if self._end.client_calls:
            self.mixed = MixedTurn(
                self._end.response_id, whole, tuple(self._end.client_calls), tuple(self._end.content)
            )
            return None
        self.hidden.append((self._end, whole))
        self._last = bound
        self._changed.clear()
        request = self._follow_up(self._body, self._end, whole, last=bound)
        self._body = JSONObject(request)
        if bound:
            self._max_turns = len(self.response_ids) + 1
        return request

    def _follow_up(self, body: JSONObject, end: TurnEnd, results: Sequence[Result], *, last: bool) -> bytes:
        return self.injection.follow_up(
            FollowUp(body, end, results, last=last, first=self._first, injected=self._injected)
        )

    def asked_again(self, status: int, error: AnswerError) -> bytes | None:
        """Take the error with which the provider has refused a later turn.

        Returns:
            The turn's request with shorter or simpler results; None if that would not help, or was tried before.
        """
        if not self.hidden:
            return None
        given = [result for _, results in self.hidden for result in results]
        change = shortened if is_too_long(status, error) else without_media
        changed = change(given) if change not in self._changed else None
        self._changed.add(change)
        if changed is None:
            return None
        left = iter(changed)
        hidden = [(end, tuple(next(left) for _ in results)) for end, results in self.hidden]
        body = self._rebuilt(self._first, hidden)
        request = body.replaced({})
        if request == self._body.replaced({}):
            return None  # the dialect has no place for what was taken out
        self.hidden, self._body = hidden, body
        return request

    def _rebuilt(self, first: JSONObject, hidden: Sequence[tuple[TurnEnd, Sequence[Result]]]) -> JSONObject:
        """Return the current turn's request, made anew from the first one."""
        body = first
        for number, (end, results) in enumerate(hidden, 1):
            body = JSONObject(self._follow_up(body, end, results, last=self._last and number == len(hidden)))
        return body

    @property
    def last_end(self) -> TurnEnd:
        """The end of the last turn that has ended."""
        return self._end

    @property
    def request(self) -> JSONObject:
        """The request of the current turn."""
        return self._body

    def restart(self, first: JSONObject) -> None:
        """Continue from another first request, which says the same. The current turn's request is made anew."""
        self._first = first
        self._body = self._rebuilt(first, self.hidden)

    def leave_out_results(self) -> None:
        """Keep none of the last turn's results for later requests: the provider has refused a request with them."""
        if self.hidden:
            end, results = self.hidden[-1]
            self.hidden[-1] = end, tuple(replace(result, parts=(Text(LEFT_OUT),)) for result in results)


def _not_made(call: Call, reason: str) -> Result:
    return Result(call, (Text(f"This call was not made: {reason}."),), is_error=True)


def _repeated(call: Call) -> Result:
    text = f"This call was made {REPEATS} times in a row with the same arguments; it is not made again."
    return Result(call, (Text(text),), is_error=True)
