"""The requests in flight: when each leaves, what is called when none is left, and what cuts them off."""

from __future__ import annotations

from aibridge_addon.interception.in_flight import InFlight


def nothing() -> None:
    pass


def test_a_request_is_in_flight_until_it_leaves() -> None:
    requests = InFlight()
    leave = requests.enter(nothing, str)
    assert len(requests) == 1
    leave()
    assert len(requests) == 0


def test_leaving_twice_does_not_remove_another_request() -> None:
    requests = InFlight()
    leave = requests.enter(nothing, str)
    requests.enter(nothing, str)
    leave()
    leave()
    assert len(requests) == 1


def test_callbacks_run_once_after_the_last_request_has_left() -> None:
    requests = InFlight()
    called: list[str] = []
    leave_first, leave_second = requests.enter(nothing, str), requests.enter(nothing, str)
    requests.when_empty(lambda: called.append("a"))
    requests.when_empty(lambda: called.append("b"))
    leave_first()
    assert called == []
    leave_second()
    leave_second()
    requests.enter(nothing, str)()
    assert called == ["a", "b"]


def test_a_callback_runs_at_once_if_no_request_is_in_flight() -> None:
    called: list[str] = []
    InFlight().when_empty(lambda: called.append("a"))
    assert called == ["a"]


def test_a_cut_off_ends_every_request_even_if_it_leaves_meanwhile() -> None:
    requests = InFlight()
    ended: list[int] = []
    leaves = [requests.enter(lambda: end(0), str), requests.enter(lambda: end(1), str)]

    def end(number: int) -> None:
        ended.append(number)
        leaves[number]()

    requests.cut_off()
    assert ended == [0, 1] and len(requests) == 0


def test_every_request_is_described_until_it_leaves() -> None:
    requests = InFlight()
    leave = requests.enter(nothing, lambda: "first")
    requests.enter(nothing, lambda: "second")
    assert requests.descriptions() == ["first", "second"]
    leave()
    assert requests.descriptions() == ["second"]
