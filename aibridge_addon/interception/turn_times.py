"""When an interception's turns began, were answered and ended. Used only if traces are on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from aibridge_addon.interception.tap import Tap
from aibridge_addon.records import TurnEnded


class TurnTimes:
    def __init__(self, now: Callable[[], datetime]) -> None:
        """`now` is the interception's clock."""
        self._now = now
        self._started_at: datetime | None = None
        self._answered_at: datetime | None = None
        self._status: int | None = None
        self._first_chunk_at: datetime | None = None

    def begin(self) -> None:
        """Begin a turn: its request is ready."""
        self._started_at = self._now()
        self._answered_at = self._first_chunk_at = None

    def answered(self, status: int) -> None:
        """Note that the head of an answer has arrived. A later one of the same turn, after a retry, replaces it."""
        self._answered_at, self._status = self._now(), status
        self._first_chunk_at = None
        self._started_at = self._started_at or self._answered_at  # the rest of a background response has no request

    def chunk_came(self) -> None:
        """Note that bytes of the answer's body have arrived. Only the first ones count."""
        if self._first_chunk_at is None:
            self._first_chunk_at = self._now()

    def ended(self, interception_id: str, turn: int, tap: Tap, error: str | None) -> TurnEnded:
        """End the turn, whose answer was read. `error`: why the interception ends with it as failed."""
        ended_at, reading = self._now(), tap.reader.reading
        return TurnEnded(
            interception_id=interception_id,
            turn=turn,
            started_at=self._started_at or ended_at,
            ended_at=ended_at,
            provider_response_id=reading.response_id,
            model=reading.model,
            http_status=self._status,
            answered_at=self._answered_at,
            first_chunk_at=self._first_chunk_at if tap.streaming else None,
            stop_reason=reading.stop_reason or None,
            error_type=reading.error.type if reading.error is not None else error,
        )
