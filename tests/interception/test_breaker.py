"""The life of a circuit breaker, with the test's clock; what counts as a failure; how many there are."""

from __future__ import annotations

import pytest

from aibridge_addon.config.providers import CircuitBreaker, Provider
from aibridge_addon.interception.breaker import MAX_BREAKERS, Breaker, Breakers, State, Ticket, Verdict, judge

CLOSED, HALF_OPEN, OPEN = State.CLOSED, State.HALF_OPEN, State.OPEN
SUCCESS, FAILURE, NEITHER = Verdict.SUCCESS, Verdict.FAILURE, Verdict.NEITHER
SETTINGS = CircuitBreaker(failure_threshold=3, interval=10, timeout=30, max_requests=2)


@pytest.mark.parametrize(
    ("http_status", "error_type", "verdict"),
    [
        # The provider answers and works
        (200, None, SUCCESS),
        (400, "invalid_request_error", SUCCESS),
        (401, "authentication_error", SUCCESS),
        (429, "rate_limit_error", SUCCESS),
        (500, "api_error", SUCCESS),
        (502, "http_502", SUCCESS),
        (200, "api_error", SUCCESS),
        (200, "throttlingException", SUCCESS),
        # The provider reports that it does not work
        (503, "http_503", FAILURE),
        (504, "http_504", FAILURE),
        (529, "overloaded_error", FAILURE),
        (200, "overloaded_error", FAILURE),
        (200, "serviceUnavailableException", FAILURE),
        # The provider does not answer, or breaks off
        (None, "upstream_unreachable", FAILURE),
        (200, "corrupt_event_stream", FAILURE),
        (200, "upstream_disconnected", FAILURE),
        (200, "incomplete_stream", FAILURE),
        # The end says nothing about the provider
        (None, "client_disconnected", NEITHER),
        (200, "client_disconnected", NEITHER),
        (200, "shutdown", NEITHER),
        (None, "recording_unavailable", NEITHER),
        (None, "keys_exhausted", NEITHER),
    ],
)
def test_what_an_end_says_of_the_provider(http_status: int | None, error_type: str | None, verdict: Verdict) -> None:
    assert judge(http_status, error_type) is verdict


class Scene:
    """One breaker, and its clock."""

    def __init__(self, settings: CircuitBreaker = SETTINGS) -> None:
        self.now = 1000.0
        self.changes: list[State] = []
        self.breaker = Breaker(settings, lambda: self.now, lambda _, after: self.changes.append(after))

    def admit(self) -> Ticket:
        ticket = self.breaker.admit()
        assert ticket is not None
        return ticket

    def run(self, *verdicts: Verdict) -> None:
        """Requests one after the other."""
        for verdict in verdicts:
            self.breaker.settle(self.admit(), verdict)

    def open(self) -> None:
        self.run(*[FAILURE] * 3)
        assert self.breaker.state is OPEN

    def half_open(self) -> Ticket:
        """Returns the ticket of the first request on trial."""
        self.open()
        self.now += 30
        ticket = self.admit()
        assert self.breaker.state is HALF_OPEN
        return ticket


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    scene = Scene()
    scene.run(FAILURE, FAILURE)
    assert scene.breaker.state is CLOSED
    scene.run(FAILURE)
    assert scene.breaker.state is OPEN and scene.breaker.admit() is None


def test_a_success_begins_the_count_anew_and_what_says_nothing_does_not() -> None:
    scene = Scene()
    scene.run(FAILURE, FAILURE, SUCCESS, FAILURE, FAILURE)
    assert scene.breaker.state is CLOSED
    scene.run(NEITHER, FAILURE)
    assert scene.breaker.state is OPEN


def test_failures_of_an_interval_that_is_over_are_forgotten() -> None:
    scene = Scene()
    scene.run(FAILURE, FAILURE)
    scene.now += 10
    scene.run(FAILURE, FAILURE)
    assert scene.breaker.state is CLOSED
    scene.now += 9.9
    scene.run(FAILURE)
    assert scene.breaker.state is OPEN


def test_a_stream_that_dies_after_many_intervals_counts_when_it_dies() -> None:
    """The original ignores results of an earlier interval, and so the results of most streams."""
    scene = Scene()
    streams = [scene.admit() for _ in range(3)]
    scene.now += 600
    for ticket in streams:
        scene.breaker.settle(ticket, FAILURE)
    assert scene.breaker.state is OPEN


def test_while_open_the_remaining_time_is_reported() -> None:
    scene = Scene()
    scene.open()
    assert scene.breaker.retry_after == 30
    scene.now += 12.5
    assert (scene.breaker.admit(), scene.breaker.retry_after) == (None, 18)
    scene.now += 17.4
    assert (scene.breaker.admit(), scene.breaker.retry_after) == (None, 1)
    scene.now += 0.1
    assert scene.breaker.admit() is not None


def test_half_open_it_lets_so_many_through_on_trial() -> None:
    scene = Scene()
    scene.half_open()
    scene.admit()
    assert (scene.breaker.admit(), scene.breaker.retry_after) == (None, 1)


def test_when_all_of_them_succeed_it_closes() -> None:
    scene = Scene()
    first = scene.half_open()
    second = scene.admit()
    scene.breaker.settle(first, SUCCESS)
    assert scene.breaker.state is HALF_OPEN and scene.breaker.admit() is None
    scene.breaker.settle(second, SUCCESS)
    assert scene.breaker.state is CLOSED
    assert scene.changes == [OPEN, HALF_OPEN, CLOSED]


def test_one_failure_on_trial_opens_it_again_for_the_whole_time() -> None:
    scene = Scene()
    first = scene.half_open()
    second = scene.admit()
    scene.breaker.settle(first, FAILURE)
    assert scene.breaker.state is OPEN and scene.breaker.retry_after == 30
    scene.breaker.settle(second, SUCCESS)
    assert scene.breaker.state is OPEN
    assert scene.changes == [OPEN, HALF_OPEN, OPEN]


def test_a_trial_that_says_nothing_gives_its_place_to_another() -> None:
    scene = Scene()
    first = scene.half_open()
    scene.admit()
    scene.breaker.settle(first, NEITHER)
    assert scene.breaker.admit() is not None
    assert scene.breaker.admit() is None


def test_what_was_let_through_before_a_change_of_state_is_not_counted() -> None:
    scene = Scene()
    early = [scene.admit() for _ in range(4)]
    scene.open()
    scene.now += 30
    trial = scene.admit()
    for ticket in early:
        scene.breaker.settle(ticket, FAILURE)
    assert scene.breaker.state is HALF_OPEN
    scene.breaker.settle(trial, SUCCESS)
    scene.run(SUCCESS)
    assert scene.breaker.state is CLOSED


def test_closed_again_it_counts_from_zero() -> None:
    scene = Scene()
    scene.half_open()
    scene.breaker.settle(scene.admit(), SUCCESS)
    scene.breaker.forget()
    assert scene.breaker.state is CLOSED
    scene.run(FAILURE, FAILURE)
    assert scene.breaker.state is CLOSED


# --- many -------------------------------------------------------------------------------------------------------------

PROVIDER = Provider(name="anthropic", type="anthropic", circuit_breaker=CircuitBreaker(failure_threshold=1))
HOST = "api.anthropic.com"
OTHER = Provider(name="other", type="anthropic", circuit_breaker=CircuitBreaker(failure_threshold=1))


@pytest.fixture
def changes() -> list[tuple[str, str, str, str, State, State]]:
    return []


@pytest.fixture
def breakers(changes: list[tuple[str, str, str, str, State, State]]) -> Breakers:
    return Breakers(lambda: 0.0, lambda *change: changes.append(change))


def test_the_worst_state_of_all_hosts_counts_for_a_provider(breakers: Breakers) -> None:
    breakers.breaker(PROVIDER, "a.example", "/v1/messages", "m")
    assert breakers.worst(PROVIDER.name, "/v1/messages", "m") is CLOSED
    trip(breakers, PROVIDER, "/v1/messages", "m", "b.example")
    assert breakers.worst(PROVIDER.name, "/v1/messages", "m") is OPEN
    assert breakers.worst(PROVIDER.name, "/v1/messages", "n") is CLOSED


def trip(breakers: Breakers, provider: Provider, route: str, model: str, host: str = HOST) -> None:
    breaker = breakers.breaker(provider, host, route, model)
    ticket = breaker.admit() if breaker is not None else None
    assert ticket is not None
    ticket.settle(503, "http_503")


def is_open(breakers: Breakers, provider: Provider, route: str, model: str, host: str = HOST) -> bool:
    breaker = breakers.breaker(provider, host, route, model)
    return breaker is not None and breaker.state is OPEN


def test_there_is_one_for_each_provider_host_route_and_model(
    breakers: Breakers, changes: list[tuple[str, str, str, str, State, State]]
) -> None:
    trip(breakers, PROVIDER, "/v1/messages", "m")
    assert is_open(breakers, PROVIDER, "/v1/messages", "m")
    assert not is_open(breakers, PROVIDER, "/v1/messages", "n")
    assert not is_open(breakers, PROVIDER, "/v1/other", "m")
    assert not is_open(breakers, OTHER, "/v1/messages", "m")
    assert not is_open(breakers, PROVIDER, "/v1/messages", "m", "other.example")
    assert changes == [("anthropic", HOST, "/v1/messages", "m", CLOSED, OPEN)]


def test_a_provider_without_the_setting_has_none(breakers: Breakers) -> None:
    assert breakers.breaker(Provider(name="plain", type="openai"), HOST, "/v1/responses", "m") is None
    assert len(breakers) == 0


def test_their_number_is_bounded_and_open_ones_are_kept_the_longest(breakers: Breakers) -> None:
    trip(breakers, PROVIDER, "/v1/messages", "bad")
    for number in range(2 * MAX_BREAKERS):
        breakers.breaker(PROVIDER, HOST, "/v1/messages", f"model-{number}")
    assert len(breakers) == MAX_BREAKERS
    assert is_open(breakers, PROVIDER, "/v1/messages", "bad")


def test_an_open_one_that_is_dropped_is_reported_as_closed(
    breakers: Breakers, changes: list[tuple[str, str, str, str, State, State]]
) -> None:
    for number in range(MAX_BREAKERS + 1):
        trip(breakers, PROVIDER, "/v1/messages", f"model-{number}")
    assert len(breakers) == MAX_BREAKERS
    assert changes[-2:] == [
        ("anthropic", HOST, "/v1/messages", "model-0", OPEN, CLOSED),
        ("anthropic", HOST, "/v1/messages", f"model-{MAX_BREAKERS}", CLOSED, OPEN),
    ]


def test_a_long_name_of_a_model_is_cut(breakers: Breakers) -> None:
    assert breakers.breaker(PROVIDER, HOST, "/", "m" * 10_000) is breakers.breaker(PROVIDER, HOST, "/", "m" * 20_000)
