"""The metrics of the GenAI conventions, one measurement for each turn. No actor, session or id is a label of them.

Names, units and buckets: https://github.com/open-telemetry/semantic-conventions-genai, "GenAI client metrics".
"""

from __future__ import annotations

from opentelemetry.metrics import Meter

from aibridge_addon.records import InterceptionStarted, TokenUsage, TurnEnded
from aibridge_addon.telemetry.labels import Bounded
from aibridge_addon.telemetry.tracing.attributes import provider_name

DURATION = "gen_ai.client.operation.duration"
TOKENS = "gen_ai.client.token.usage"
FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"

SECONDS = tuple(0.01 * 2**power for power in range(14))
"""0.01 to 81.92."""
COUNTS = tuple(4**power for power in range(14))
"""1 to 67,108,864."""
MODELS = 200
HOSTS = 100
ERRORS = 100
MAX_COUNT = 10**15
"""A larger count of tokens is ignored as wrong."""


class Measurements:
    def __init__(self, meter: Meter) -> None:
        self._duration = meter.create_histogram(
            DURATION, "s", "Duration of a request to a model.", explicit_bucket_boundaries_advisory=SECONDS
        )
        self._tokens = meter.create_histogram(
            TOKENS, "{token}", "Tokens that a request used.", explicit_bucket_boundaries_advisory=COUNTS
        )
        self._first_chunk = meter.create_histogram(
            FIRST_CHUNK, "s", "Time to a stream's first chunk.", explicit_bucket_boundaries_advisory=SECONDS
        )
        self._model = Bounded(MODELS)
        self._host = Bounded(HOSTS)
        self._error = Bounded(ERRORS)

    def turn(self, started: InterceptionStarted, turn: TurnEnded, error: str | None) -> None:
        """Measure a turn. `error` is the type of its error."""
        labels = self._labels(started, turn.model)
        if turn.first_chunk_at is not None:
            self._first_chunk.record((turn.first_chunk_at - turn.started_at).total_seconds(), labels)
        if error is not None:
            labels["error.type"] = self._error(error)
        self._duration.record((turn.ended_at - turn.started_at).total_seconds(), labels)

    def tokens(self, started: InterceptionStarted, usage: TokenUsage) -> None:
        """Count a turn's tokens, or those of an iteration beside it. Cached input tokens are input, too."""
        labels = self._labels(started, usage.model)
        counts = {"input": all_input(usage), "output": usage.output_tokens}
        if usage.completeness == "partial" and not any(counts.values()):
            return  # the row of an answer without numbers
        for kind, count in counts.items():
            if 0 <= count <= MAX_COUNT:
                self._tokens.record(count, {**labels, "gen_ai.token.type": kind})

    def _labels(self, started: InterceptionStarted, answered: str) -> dict[str, str]:
        labels = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider_name(started.provider),
            "gen_ai.request.model": self._model(started.model),
        }
        if answered:
            labels["gen_ai.response.model"] = self._model(answered)
        if started.upstream_host:
            labels["server.address"] = self._host(started.upstream_host)
        return labels


def all_input(usage: TokenUsage) -> int:
    """Return the input tokens with cached ones, as the conventions count them."""
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_write_input_tokens
