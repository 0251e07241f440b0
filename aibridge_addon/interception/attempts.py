"""Decide what follows a failed upstream attempt: show it, use another key, retry, or give up. Sans-io.

    attempt ─▶ Outcome ─▶ Attempts.after ─┬─ SHOW       the client gets this answer
                                          ├─ NEXT_KEY   at once, with another central key
                                          ├─ RETRY      after a pause, the same request
                                          └─ EXHAUSTED  every central key rests: the bridge answers itself

A refused key rests at once, for the request's model if its rate is limited, otherwise for the route. What the provider
says in its error then decides (`learn`): the key rests for everything, or it does not rest, because the request itself
is the reason and no other key would help. A refusal at a route that asks no model is never one for everything, unless
the provider says so: such a request may need a right that the others do not need, and has limits of its own.

Retried statuses, retry headers and pauses follow the vendors' own SDKs (openai-python and anthropic-sdk-python,
`_base_client.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from aibridge_addon.credentials import key_pool
from aibridge_addon.credentials.key_pool import Exhausted, Key, KeyPool, Rest
from aibridge_addon.dialects.errors import AnswerError
from aibridge_addon.wire.json_values import as_text

FIRST_PAUSE = 0.5
"""Seconds before the first retry. Doubled for each further retry."""
LONGEST_PAUSE = 8.0
"""Seconds. The doubled pause never grows beyond this."""
JITTER = 0.25
"""Share of a pause. Up to this much is subtracted at random, so that clients do not retry all at once."""
MAX_RETRY_AFTER = 60.0
"""Seconds. A longer Retry-After is ignored in favour of our own backoff."""
LONGEST_KEY_PAUSE = 30.0
"""Seconds. The bridge does not wait longer for a resting key. This is well below the default rest of a minute, part of
which may have passed when the last key is refused."""
MAX_UNPROCESSED = 3
"""Times that a request is sent again because the upstream had not processed it. These are no retries."""
MAX_REPORTED = 50
"""Maximum number of attempts listed in a row's metadata. A tool loop may make many."""

MAX_CODE = 64
"""Characters of an error's code."""
MAX_ERROR_LENGTH = 200
"""Characters of a connection error. The text may quote what the upstream sent."""

OF_THE_REQUEST = frozenset({"mismatched_organization", "mismatched_project", "invalid_organization", "invalid_project"})
"""Codes of a 401 that the request's own headers or members cause (OpenAI, "Error codes")."""
OF_THE_ROUTE = "Missing scopes"
"""What OpenAI says in the message of a 401 for a key that has no right to this route."""
TOO_LARGE = "Request too large"
"""How OpenAI begins the message of a 429 for a request that is larger than the limit of tokens per minute."""
OF_THE_ACCOUNT = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "account_deactivated",
        "access_terminated",
        "spend_limit_exceeded",
    }
)
"""Codes of a 429 that hold for all models."""

RATE_LIMITED = 429
UNAUTHORIZED = 401
RETRIED = frozenset({408, 409, RATE_LIMITED})
"""Statuses. Failed connections and statuses from 500 on are retried too."""


class Step(Enum):
    SHOW = "show"
    NEXT_KEY = "next_key"
    RETRY = "retry"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: its status and retry headers. The status is None if the connection failed."""

    status: int | None
    should_retry: bool | None = None
    retry_after: float | None = None
    """Seconds from now; never negative."""
    error: str | None = None
    unprocessed: bool = False
    """The upstream has not processed the request: it says so, or it has closed a connection that was kept open."""


def outcome_of(status: int, headers: Mapping[str, str], now: datetime) -> Outcome:
    """Read an answer's head. `headers` ignores case; `now` is used for a date in `Retry-After`."""
    hint = headers.get("x-should-retry", "").lower()
    return Outcome(status, {"true": True, "false": False}.get(hint), _retry_after(headers, now))


def _retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return seconds if 0 <= seconds < float("inf") else None
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):  # OverflowError: a time zone or a year out of range
        return None
    return seconds if seconds >= 0 else None


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table. None matches everything."""

    step: Step
    statuses: Callable[[int | None], bool]
    refuses_key: bool | None = None
    """The attempt was made with one of several central keys."""
    other_key: bool | None = None
    """Another key may be used now."""
    may_retry: bool | None = None
    """Retries are left, and if all keys rest, one is available again soon."""
    should_retry: bool | None = None


def _is(*statuses: int) -> Callable[[int | None], bool]:
    return lambda status: status in statuses


def _retriable(status: int | None) -> bool:
    return status is None or status in RETRIED or status >= 500


def _any(_status: int | None) -> bool:
    return True


TABLE = (
    Rule(Step.NEXT_KEY, _is(UNAUTHORIZED, RATE_LIMITED), refuses_key=True, other_key=True),
    Rule(Step.EXHAUSTED, _is(UNAUTHORIZED), refuses_key=True),
    Rule(Step.RETRY, _is(RATE_LIMITED), refuses_key=True, may_retry=True),
    Rule(Step.EXHAUSTED, _is(RATE_LIMITED), refuses_key=True),
    Rule(Step.SHOW, _any, should_retry=False),
    Rule(Step.SHOW, _any, may_retry=False),
    Rule(Step.RETRY, _any, should_retry=True),
    Rule(Step.RETRY, _retriable),
    Rule(Step.SHOW, _any),
)
"""The first line that matches applies. A 403 is shown: another key would be refused too."""


def decide(outcome: Outcome, *, refuses_key: bool, other_key: bool, may_retry: bool) -> Step:
    """Return the step of the first matching rule."""
    situation = {
        "refuses_key": refuses_key,
        "other_key": other_key,
        "may_retry": may_retry,
        "should_retry": outcome.should_retry,
    }
    return next(
        rule.step
        for rule in TABLE
        if rule.statuses(outcome.status)
        and all(getattr(rule, name) in (None, value) for name, value in situation.items())
    )


def pause(retry: int, retry_after: float | None, jitter: float) -> float:
    """Return the seconds before a retry. Retries count from 0; `jitter` is from 0 to 1."""
    if retry_after is not None and retry_after < MAX_RETRY_AFTER:
        return retry_after
    longest: float = min(FIRST_PAUSE * 2**retry, LONGEST_PAUSE)
    return longest * (1 - JITTER * jitter)


@dataclass(frozen=True, slots=True)
class Fault:
    """The provider has refused the request itself, not the key."""

    status: int
    code: str
    message: str


@dataclass(slots=True)
class Attempts:
    """The upstream attempts of one client request: its keys, its retries, and their report in the row.

    Each upstream turn has its own retries and may try every key.
    """

    pool: KeyPool | None = None
    """The provider's central keys; None: the client sends its own credential, or there is none."""
    max_retries: int = 0
    route: str = ""
    """The template of the request's route."""
    model: str = ""
    """The model that is asked. Empty: none is, or the request was not read."""
    fault: Fault | None = None
    """Why no key helps. The bridge answers with it in place of another attempt."""
    key: Key | None = None
    """The central key of the current attempt."""
    reported: list[dict[str, Any]] = field(default_factory=list)
    """The failed attempts and the steps after them, for the row's metadata."""
    pause: float = 0.0
    """Seconds to wait before the next attempt."""
    refused_key: str | None = None
    """Why the provider refused the key of the last attempt. None: it did not."""
    _refusal: tuple[Key, int, Rest] | None = None
    """The key that was refused last, the status, and the rest that began with it."""
    _retries: int = 0
    _unprocessed: int = 0
    _refused: list[Key] = field(default_factory=list)

    @property
    def last_status(self) -> int | None:
        """Status of the last answer that was not shown to the client. None: there was none."""
        return next((status for step in reversed(self.reported) if (status := step["status"]) is not None), None)

    @property
    def keys_tried(self) -> int | None:
        """Number of central keys that were tried for this turn, since its last retry. None: there are not several."""
        if self.pool is None or self.key is None or len(self.pool.keys) < 2:
            return None
        return len({*self._refused, self.key})

    def choose_key(self) -> Key | None:
        """Choose the key for the next attempt."""
        self.key = self.pool.choose(self._refused, self.model, self.route) if self.pool is not None else None
        return self.key

    def exhausted(self) -> Exhausted:
        """Return the answer to the client when every key rests."""
        assert self.pool is not None
        return self.pool.exhausted(self.model, self.route)

    def after(self, outcome: Outcome, *, jitter: float) -> Step:
        """Decide what follows this attempt, and set `pause` to the seconds to wait before it."""
        if outcome.unprocessed and self._unprocessed < MAX_UNPROCESSED:
            return self._again(outcome, jitter)
        pool, key = self.pool, self.key
        refuses_key = pool is not None and key is not None and len(pool.keys) > 1
        retry_after = outcome.retry_after
        other_key = may_retry = False
        self.refused_key = self._refusal = None
        if refuses_key and pool is not None and key is not None and outcome.status in (UNAUTHORIZED, RATE_LIMITED):
            if outcome.status == RATE_LIMITED:
                route = "" if self.model else self.route
                rest = pool.rest(key, retry_after, rate_limited=True, model=self.model, route=route)
            else:
                rest = pool.rest(key, None, rate_limited=False, route=self.route)
            self._refusal = key, outcome.status, rest
            self._refused.append(key)
            self.refused_key = key_pool.RATE_LIMITED if outcome.status == RATE_LIMITED else key_pool.UNAUTHORIZED
            other_key = pool.choose(self._refused, self.model, self.route) is not None
            retry_after = pool.wait(self.model, self.route)
            may_retry = retry_after < LONGEST_KEY_PAUSE
        else:
            may_retry = True
        step = decide(
            outcome,
            refuses_key=refuses_key,
            other_key=other_key,
            may_retry=may_retry and self._retries < self.max_retries,
        )
        self.pause = 0.0
        if step is Step.RETRY:
            self.pause = pause(self._retries, retry_after, jitter)
            self._retries += 1
            self._refused.clear()
        if step is not Step.SHOW:
            self._report(outcome, step)
        elif outcome.status is None and self.reported:
            self._report(outcome, None)
        return step

    def learn(self, error: AnswerError) -> None:
        """Read the error with which the provider has refused the last key. `fault` may change."""
        if self.pool is None or self._refusal is None:
            return
        (key, status, rest), self._refusal = self._refusal, None
        code = as_text(error.details.get("code")) or error.type
        if code in OF_THE_REQUEST or (status == RATE_LIMITED and error.message.startswith(TOO_LARGE)):
            self.pool.wake(rest)
            self.fault = Fault(status, code[:MAX_CODE], error.message)
        elif code in OF_THE_ACCOUNT or (status == UNAUTHORIZED and self.model and OF_THE_ROUTE not in error.message):
            self.pool.rest(key, None, rate_limited=status == RATE_LIMITED)

    def _again(self, outcome: Outcome, jitter: float) -> Step:
        """Send a request again that was not processed: at once on another connection, then after pauses."""
        self.refused_key = None
        self.pause = pause(self._unprocessed - 1, None, jitter) if self._unprocessed else 0.0
        self._unprocessed += 1
        self._report(outcome, Step.RETRY)
        return Step.RETRY

    def later_turn(self, retries: int) -> None:
        """Note that a turn after the first follows. The client's own retry would run the tools of earlier turns again.

        `retries`: how often it is retried at least.
        """
        self.max_retries = max(self.max_retries, retries)

    def answered(self, status: int) -> None:
        """Note that the attempt's answer is shown: the next turn has fresh retries."""
        self._retries = self._unprocessed = 0
        self._refused.clear()
        if self.reported:
            self._report(Outcome(status), None)

    def _report(self, outcome: Outcome, step: Step | None) -> None:
        if len(self.reported) >= MAX_REPORTED:
            return
        members: dict[str, Any] = {"status": outcome.status}
        if outcome.error is not None:
            members["error"] = outcome.error[:MAX_ERROR_LENGTH]
        if self.key is not None:
            members["credential_hint"] = self.key.hint
        if step is not None:
            members["then"] = step.value
        if self.pause and step is Step.RETRY:
            members["pause_ms"] = round(self.pause * 1000)
        self.reported.append(members)
