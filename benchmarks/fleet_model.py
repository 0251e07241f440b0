"""A model of a fleet: what so many developers cost in workers, hosts, rows, connections and disk.

It is arithmetic: a rate of requests, times what one of them costs. Costs are measured by this benchmark (`Costs`), the
rest is assumed (`Assumptions`), each number with its source. `benchmarks.fleet` checks the model against a replay.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

FLEETS = (100, 1_000, 10_000, 100_000)
"""Developers."""
GB = 1e9


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here."""

    context_tokens: float = 43_000
    bytes_per_token: float = 4.0
    first_request_bytes: float = 80_000
    requests_per_session: int = 40
    tool_calls_per_prompt: float = 5.5
    events_per_answer: int = 300
    events_per_second: float = 50.0
    seconds_to_first_byte: float = 2.0
    connections_per_developer: float = 2.0
    new_connections_per_request: float = 0.25
    hours_per_month: float = 8 * 21.0
    mean_of_busiest: float = 0.5
    busy: float = 0.7
    host_cores: int = 8
    host_memory_gb: float = 16.0
    host_network_mb: float = 125.0
    worker_descriptors: int = 65_536
    postgres_cores: int = 8
    postgres_connections: int = 500

    def requests_per_minute(self, developers: int) -> float:
        """Return those of one developer in the busiest hour: in large organisations fewer work at the same time."""
        return next(rate for most, rate in REQUESTS_PER_MINUTE if developers <= most)

    @property
    def request_bytes(self) -> float:
        return self.context_tokens * self.bytes_per_token

    @property
    def growth_bytes(self) -> float:
        """Return what a session's request has more than the one before it, so that the mean is as assumed."""
        return 2 * (self.request_bytes - self.first_request_bytes) / (self.requests_per_session - 1)

    @property
    def stream_seconds(self) -> float:
        return self.seconds_to_first_byte + self.events_per_answer / self.events_per_second

    def sizes(self, number: int) -> Iterator[int]:
        """Yield the sizes of a session's requests, and of those that follow it. Sessions begin at different places."""
        place = number * 7 % self.requests_per_session  # 7: coprime to 40, so that neighbours differ
        while True:
            yield round(self.first_request_bytes + place * self.growth_bytes)
            place = (place + 1) % self.requests_per_session


ASSUMED = Assumptions()
REQUESTS_PER_MINUTE = ((100, 0.87), (500, 0.47), (math.inf, 0.35))
"""By the number of developers up to which it holds."""
COSTS_PAGE = "Claude Code's documentation, *Manage costs*, rate limits recommended for teams"
SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "requests per minute of a developer, busiest hour": f"0.87 (to 100), 0.47 (to 500), 0.35: {COSTS_PAGE}, upper "
        "ends",
        "tokens of a request": f"43,000: {COSTS_PAGE}, tokens by requests per minute",
        "bytes of a token": "4, as budgets estimate",
        "first request of a session": "80 KB: Claude Code sends 50 to 115 KB, Codex 36 to 68, Copilot 50 (observed)",
        "requests of a session": "40; so each is 4.7 KB longer than the one before",
        "calls of tools for each prompt": "5.5: 245,306 calls for 44,212 prompts of one heavy user (mpiv.ai, 2026)",
        "events of an answer": "300, 50 a second: assumed, as in the other measures; 2 s until the first",
        "connections of a developer": "2, a quarter of the requests on a new one: Codex opens one for each (observed)",
        "working time": "8 hours on 21 days a month, on average half of the busiest hour: assumed",
        "use of a core": "70 % at the busiest hour, so that queues stay short: assumed",
        "a host": "8 cores, 16 GB, 1 Gbit/s: assumed",
        "a worker": "65,536 descriptors, two for each connection: assumed",
        "PostgreSQL": "8 cores, `max_connections` 500: assumed",
    }
)
"""Each assumption, its value and its source."""


@dataclass(frozen=True)
class Costs:
    """Measured by this benchmark."""

    request_us: Sequence[tuple[float, float]]
    """CPU of a request without its answer's events, by its bytes, in ascending order."""
    chunk_us: float
    """CPU of an event."""
    one_by_one: float
    """Factor of CPU at the assumed use of a core, where events come one by one and each wakes the worker, to what the
    other costs add up to, which were measured under full load."""
    connection_us: float
    """CPU of a new connection, with TLS where there is any."""
    worker_mb: float
    stream_kb: float
    """Memory of an open stream."""
    idle_kb: float
    """Memory of an idle connection."""
    rows: float
    """Of an interception, in all tables."""
    sqlite_bytes: float
    postgres_bytes: float
    postgres_us: float
    """CPU of PostgreSQL for the rows of an interception."""
    postgres_connections: float
    """Of a worker."""

    def of_request(self, size: float) -> float:
        """Return the CPU of a request of so many bytes, in microseconds, on the line between measured ones."""
        points = self.request_us
        if len(points) == 1:
            return points[0][1]
        pairs = list(itertools.pairwise(points))
        (low, less), (high, more) = next((pair for pair in pairs if size <= pair[1][0]), pairs[-1])
        return less + (size - low) * (more - less) / (high - low)


@dataclass(frozen=True)
class Prediction:
    """Of the busiest hour, unless it says otherwise."""

    developers: int
    requests_per_second: float
    streams: float
    events_per_second: float
    cores: float
    workers: int
    hosts: int
    memory_gb: float
    client_connections: float
    descriptors: float
    network_mb: float
    """A second, into the hosts and out of them again."""
    rows_per_second: float
    postgres_cores: float
    postgres_connections: float
    sqlite_gb: float
    """A month."""
    postgres_gb: float
    """A month."""
    first_to_saturate: str


def cores(costs: Costs, requests_per_second: float, assumed: Assumptions = ASSUMED, new: float = 0.0) -> float:
    """Return the CPU of a load; `new` is the share of requests on new connections."""
    request = costs.of_request(assumed.request_bytes) + assumed.events_per_answer * costs.chunk_us
    return requests_per_second * (request + new * costs.connection_us) / 1e6


def predict(developers: int, costs: Costs, assumed: Assumptions = ASSUMED) -> Prediction:
    rate = developers * assumed.requests_per_minute(developers) / 60
    used = costs.one_by_one * cores(costs, rate, assumed, assumed.new_connections_per_request)
    streams = rate * assumed.stream_seconds
    connections = developers * assumed.connections_per_developer
    descriptors = 2 * connections
    workers = max(1, math.ceil(used / assumed.busy), math.ceil(descriptors / assumed.worker_descriptors))
    memory = (
        workers * costs.worker_mb * 1e6 + 1e3 * (streams * costs.stream_kb + (connections - streams) * costs.idle_kb)
    ) / GB
    network = rate * assumed.request_bytes / 1e6
    needs = {
        "cores": workers / assumed.host_cores,
        "memory": memory / assumed.host_memory_gb,
        "network": network / assumed.host_network_mb,
    }
    hosts = max(1, math.ceil(max(needs.values())))
    month = rate * 3600 * assumed.hours_per_month * assumed.mean_of_busiest
    others = {
        "descriptors of a worker": descriptors / workers / assumed.worker_descriptors,
        "CPU of PostgreSQL": rate * costs.postgres_us / 1e6 / assumed.postgres_cores,
        "connections of PostgreSQL": workers * costs.postgres_connections / assumed.postgres_connections,
    }
    return Prediction(
        developers=developers,
        requests_per_second=rate,
        streams=streams,
        events_per_second=rate * assumed.events_per_answer,
        cores=used,
        workers=workers,
        hosts=hosts,
        memory_gb=memory,
        client_connections=connections,
        descriptors=descriptors,
        network_mb=network,
        rows_per_second=rate * costs.rows,
        postgres_cores=rate * costs.postgres_us / 1e6,
        postgres_connections=workers * costs.postgres_connections,
        sqlite_gb=month * costs.sqlite_bytes / GB,
        postgres_gb=month * costs.postgres_bytes / GB,
        first_to_saturate=_fullest({f"{name} of a host": need / hosts for name, need in needs.items()} | others),
    )


def _fullest(uses: Mapping[str, float]) -> str:
    name = max(uses, key=lambda use: uses[use])
    return f"{name} ({uses[name]:.0%})"
