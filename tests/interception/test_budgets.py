"""Budgets: their windows by the calendar of a time zone, what they apply to, and what they admit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.config.budgets import Budget, Period
from aibridge_addon.interception.budgets import (
    RESERVED_FOR,
    USUAL_OUTPUT,
    Budgets,
    Party,
    max_output,
    subjects,
    window,
)
from aibridge_addon.records import BudgetUsed, InterceptionEnded, Record, Spent, TokenUsage
from aibridge_addon.wire.json_object import JSONObject
from tests.support.examples import ENDED, STARTED, TOKENS
from tests.support.reading import NOON

ADA = Party("ada", ("staff",), "anthropic", "claude-1")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "America/Havana", "Asia/Beirut")


@pytest.mark.parametrize(
    ("period", "zone", "moment", "start", "end"),
    [
        ("day", "UTC", "2026-01-02T12:00Z", "2026-01-02T00:00Z", "2026-01-03T00:00Z"),
        ("day", "UTC", "2026-01-02T00:00Z", "2026-01-02T00:00Z", "2026-01-03T00:00Z"),
        ("day", "UTC", "2026-01-01T23:59:59.999999Z", "2026-01-01T00:00Z", "2026-01-02T00:00Z"),
        ("day", "Asia/Kolkata", "2026-01-02T18:29Z", "2026-01-01T18:30Z", "2026-01-02T18:30Z"),
        ("day", "America/New_York", "2026-01-01T04:59Z", "2025-12-31T05:00Z", "2026-01-01T05:00Z"),
        # The clock is put forward: the day has 23 hours.
        ("day", "Europe/Berlin", "2026-03-29T12:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        # The clock is put back: the day has 25 hours.
        ("day", "Europe/Berlin", "2026-10-25T00:30Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        ("day", "Europe/Berlin", "2026-10-25T01:30Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        # The clock is put forward at midnight, so that the day begins at 01:00.
        ("day", "Asia/Beirut", "2026-03-29T12:00Z", "2026-03-28T22:00Z", "2026-03-29T21:00Z"),
        # The clock is put back from 01:00, so that the day has two midnights.
        ("day", "America/Havana", "2026-11-01T05:30Z", "2026-11-01T04:00Z", "2026-11-02T05:00Z"),
        # A date that the zone has skipped.
        ("day", "Pacific/Apia", "2011-12-30T09:59Z", "2011-12-29T10:00Z", "2011-12-30T10:00Z"),
        ("week", "UTC", "2026-01-04T23:59Z", "2025-12-29T00:00Z", "2026-01-05T00:00Z"),
        ("week", "UTC", "2026-01-05T00:00Z", "2026-01-05T00:00Z", "2026-01-12T00:00Z"),
        ("week", "Europe/Berlin", "2026-03-29T21:59Z", "2026-03-22T23:00Z", "2026-03-29T22:00Z"),
        ("week", "America/New_York", "2026-11-01T12:00Z", "2026-10-26T04:00Z", "2026-11-02T05:00Z"),
        ("month", "UTC", "2026-02-28T23:59Z", "2026-02-01T00:00Z", "2026-03-01T00:00Z"),
        ("month", "UTC", "2028-02-29T12:00Z", "2028-02-01T00:00Z", "2028-03-01T00:00Z"),
        ("month", "UTC", "2026-12-31T23:59Z", "2026-12-01T00:00Z", "2027-01-01T00:00Z"),
        ("month", "Europe/Berlin", "2026-10-31T23:00Z", "2026-10-31T23:00Z", "2026-11-30T23:00Z"),
        ("month", "Europe/Berlin", "2026-03-31T21:59Z", "2026-02-28T23:00Z", "2026-03-31T22:00Z"),
        ("month", "Pacific/Auckland", "2025-12-31T11:00Z", "2025-12-31T11:00Z", "2026-01-31T11:00Z"),
    ],
)
def test_a_window_is_a_day_a_week_or_a_month_of_its_zone(
    period: Period, zone: str, moment: str, start: str, end: str
) -> None:
    found = window(period, ZoneInfo(zone), datetime.fromisoformat(moment))
    assert found == (datetime.fromisoformat(start), datetime.fromisoformat(end))


@given(
    st.sampled_from(["day", "week", "month"]),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
)
def test_windows_cover_all_time_without_overlaps(period: Period, zone: str, moment: datetime) -> None:
    found = window(period, ZoneInfo(zone), moment)
    assert found.start <= moment < found.end
    assert window(period, ZoneInfo(zone), found.end).start == found.end
    last = found.end.astimezone(UTC) - timedelta(microseconds=1)
    assert window(period, ZoneInfo(zone), last) == found
    local = found.start.astimezone(ZoneInfo(zone))
    assert period != "week" or local.weekday() == 0
    assert period != "month" or local.day == 1


def budget(**members: Any) -> Budget:
    limit = {} if members.keys() & {"usd", "tokens", "requests"} else {"usd": 1.0}
    return Budget.model_validate({"name": "b", "per": "all", "period": "day"} | limit | members)


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ({"per": "all"}, ("all",)),
        ({"per": "actor"}, ("ada",)),
        ({"per": "group"}, ("staff", "team-a")),
        ({"per": "provider"}, ("anthropic",)),
        ({"per": "model"}, ("claude-1",)),
        ({"per": "group", "match": {"groups": "team-*"}}, ("team-a",)),
        ({"per": "actor", "match": {"groups": ["team-*"]}}, ("ada",)),
        ({"per": "actor", "match": {"groups": ["others"]}}, ()),
        ({"per": "actor", "match": {"actors": ["bob", "a*"]}}, ("ada",)),
        ({"per": "actor", "match": {"actors": ["A*"]}}, ()),
        ({"per": "all", "match": {"models": ["claude-?"], "providers": ["anthropic"]}}, ("all",)),
        ({"per": "all", "match": {"models": ["claude-?"], "providers": ["openai"]}}, ()),
    ],
)
def test_a_budget_applies_by_its_patterns(members: dict[str, Any], found: tuple[str, ...]) -> None:
    assert subjects(budget(**members), ADA._replace(groups=("staff", "team-a"))) == found


def test_a_group_budget_does_not_apply_to_an_actor_without_groups() -> None:
    assert subjects(budget(per="group"), ADA._replace(groups=())) == ()


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"max_tokens": 7}', 7),
        (b'{"max_completion_tokens": 8}', 8),
        (b'{"max_output_tokens": 9}', 9),
        (b'{"inferenceConfig": {"maxTokens": 10}}', 10),
        (b'{"max_tokens": "many", "inferenceConfig": 3}', None),
        (b'{"max_tokens": -1}', None),
        (b"{}", None),
    ],
)
def test_the_limit_of_the_output_is_read(body: bytes, tokens: int | None) -> None:
    assert max_output(JSONObject(body)) == tokens
    assert max_output(None) is None


class Bridge:
    """The accounts of a process whose clock the test owns."""

    def __init__(self, *budgets: Budget) -> None:
        self.now = NOON
        self.records: list[Record] = []
        self.warnings: list[tuple[str, str]] = []
        self.accounts = Budgets(
            budgets,
            lambda actor: ("staff",) if actor == "ada" else (),
            now=lambda: self.now,
            emit=self.records.append,
            warn=lambda event, state: self.warnings.append((event, state)),
        )
        self.prices: list[tuple[int, int]] = []

    def admit(self, id: str, party: Party = ADA, size: int = 0, output: int | None = None, cost: float = 0.25) -> bool:
        def price(_model: str, inputs: int, outputs: int) -> float:
            self.prices.append((inputs, outputs))
            return cost

        return self.accounts.admit(id, party, size, output, price) is None

    def start(self, id: str, **members: Any) -> None:
        self.accounts.count(replace(STARTED, id=id, provider_name="anthropic", **members))

    def usage(self, id: str, cost: float | None = 0.25, **members: Any) -> TokenUsage:
        counts = {"input_tokens": 10, "output_tokens": 20, "cache_read_input_tokens": 0, "cache_write_input_tokens": 0}
        merged: dict[str, Any] = {"created_at": self.now, "kind": "answer"} | counts | members
        return replace(TOKENS, interception_id=id, cost_usd=cost, **merged)

    def end(self, id: str, turns: int = 1) -> InterceptionEnded:
        return replace(ENDED, interception_id=id, turns=turns, ended_at=self.now)

    def spend(self, id: str, cost: float | None = 0.25, **members: Any) -> None:
        """Have an interception answered, from its start to its end."""
        self.start(id)
        self.accounts.count(self.usage(id, cost, **members))
        self.accounts.count(self.end(id))

    def others(self, *spent: Spent, **reserved: float) -> None:
        windows = self.accounts.windows()
        others = self.accounts.total(dict.fromkeys(windows, spent))
        self.accounts.update(windows, others, {("b", subject): amount for subject, amount in reserved.items()})


def test_twenty_at_once_do_not_all_pass() -> None:
    bridge = Bridge(budget(usd=1.0))
    assert sum(bridge.admit(str(n)) for n in range(20)) == 4


def test_the_request_that_crosses_the_limit_is_admitted_and_the_next_is_refused() -> None:
    bridge = Bridge(budget(usd=1.0))
    for n, cost in enumerate((0.5, 0.4, 0.7)):
        assert bridge.admit(str(n), cost=0.0)
        bridge.spend(str(n), cost)
    refused = bridge.accounts.admit("last", ADA, 0, None, lambda *_: 0.0)
    assert refused is not None
    assert refused.details == {
        "code": "budget_exceeded",
        "budget": {
            "name": "b",
            "per": "all",
            "spent": 1.6,
            "limit": 1.0,
            "unit": "usd",
            "resets_at": "2026-01-03T00:00:00+00:00",
        },
    }
    assert refused.message == (
        "budget b is used up: 1.60 of 1.00 USD are spent. It resets at 2026-01-03T00:00:00+00:00."
    )


def test_small_amounts_are_written_with_four_decimals() -> None:
    bridge = Bridge(budget(usd=0.01))
    bridge.spend("1", 0.023655)
    refused = bridge.accounts.admit("2", ADA, 0, None, lambda *_: 0.0)
    assert refused is not None and "0.0237 of 0.0100 USD are spent" in refused.message


@pytest.mark.parametrize(
    "ends",
    [
        lambda bridge: [bridge.end("1", turns=0)],
        lambda bridge: [bridge.end("1")],
        lambda bridge: [bridge.usage("1", 0.0), bridge.end("1")],
    ],
)
def test_a_reservation_is_released_at_the_end(ends: Callable[[Bridge], list[Record]]) -> None:
    bridge = Bridge(budget(usd=1.0))
    assert bridge.admit("1", cost=1.0)
    assert not bridge.admit("2")
    bridge.start("1")
    for record in ends(bridge):
        bridge.accounts.count(record)
    assert bridge.admit("2")


def test_a_request_without_an_answer_is_released_before_its_records_are_prepared() -> None:
    bridge = Bridge(budget(usd=1.0))
    assert bridge.admit("1", cost=1.0)
    emitted: list[Record] = []
    bridge.accounts.watch("1", emitted.append)(bridge.end("1", turns=0))
    assert bridge.admit("2") and len(emitted) == 1


def test_a_reservation_is_held_until_the_cost_is_known() -> None:
    bridge = Bridge(budget(usd=1.0))
    assert bridge.admit("1", cost=1.0)
    emit = bridge.accounts.watch("1", lambda _: None)
    emit(bridge.usage("1", None))
    emit(bridge.end("1"))
    assert not bridge.admit("2")


def test_a_reservation_of_an_answer_whose_end_is_not_seen_expires() -> None:
    bridge = Bridge(budget(usd=1.0, period="month"))
    assert bridge.admit("1", cost=1.0)
    bridge.now += RESERVED_FOR
    assert bridge.accounts.reserved() == {}
    assert bridge.admit("2")


def test_each_turn_settles_its_part_of_the_reservation() -> None:
    bridge = Bridge(budget(usd=1.0))
    assert bridge.admit("1", cost=0.5)
    bridge.start("1")
    bridge.accounts.count(bridge.usage("1", 0.2))
    assert bridge.accounts.reserved() == {("b", "all"): pytest.approx(0.3)}
    bridge.accounts.count(bridge.usage("1", 0.6))
    assert bridge.accounts.reserved() == {}


def test_the_expected_output_is_the_mean_of_recent_answers_else_the_limit_of_the_request() -> None:
    bridge = Bridge(budget(usd=100.0))
    bridge.admit("1", size=400)
    bridge.admit("2", size=401, output=17)
    bridge.spend("1", output_tokens=10)
    bridge.spend("2", output_tokens=31)
    bridge.admit("3", size=3, output=17)
    bridge.admit("4", ADA._replace(model="claude-2"), size=8, output=18)
    assert bridge.prices == [(100, USUAL_OUTPUT), (100, 17), (0, 20), (2, 18)]


@pytest.mark.parametrize(
    ("limit", "passes"),
    [({"tokens": 100}, [True] * 4 + [False]), ({"requests": 3}, [True] * 3 + [False] * 2)],
)
def test_tokens_of_all_kinds_and_requests_are_counted(limit: dict[str, int], passes: list[bool]) -> None:
    bridge = Bridge(budget(**limit))
    admitted = []
    for n in range(5):
        id = str(n)
        if bridge.admit(id, output=1):
            admitted.append(True)
            bridge.spend(id)
        else:
            admitted.append(False)
    assert admitted == passes


def test_requests_that_did_not_go_upstream_do_not_count() -> None:
    bridge = Bridge(budget(requests=1))
    for id in "abc":
        assert bridge.admit(id)
        bridge.start(id)
        bridge.accounts.count(bridge.end(id, turns=0))


def test_usage_counts_in_the_window_in_which_its_row_was_made() -> None:
    bridge = Bridge(budget(usd=1.0))
    bridge.start("1")
    bridge.now = datetime(2026, 1, 3, 0, 0, 1, tzinfo=UTC)
    early = bridge.usage("1", 5.0, created_at=datetime(2026, 1, 2, 23, 59, tzinfo=UTC))
    bridge.accounts.count(early)
    assert bridge.admit("2")
    bridge.accounts.count(bridge.usage("1", 5.0))
    assert not bridge.admit("3")


def test_a_new_window_begins_with_nothing_spent() -> None:
    bridge = Bridge(budget(usd=1.0))
    bridge.spend("1", 2.0)
    assert not bridge.admit("2")
    bridge.now = datetime(2026, 1, 3, tzinfo=UTC)
    assert bridge.admit("2")
    bridge.others()
    assert bridge.records[-1] == BudgetUsed("b", "all", names_actor=False, ratio=0.0)


def test_a_clock_that_jumps_ahead_and_is_set_back_changes_nothing_of_what_was_spent() -> None:
    bridge = Bridge(budget(usd=1.0))
    bridge.spend("1", 0.75)
    bridge.now += timedelta(days=400)
    assert bridge.admit("2", cost=0.0)
    bridge.others()
    bridge.now = NOON
    bridge.others()
    assert bridge.admit("3", cost=0.25) and not bridge.admit("4")
    bridge.spend("3", 0.5)
    assert not bridge.admit("5")
    bridge.others(Spent("bob", None, "openai", "gpt", usd=5.0))
    assert bridge.records[-1] == BudgetUsed("b", "all", names_actor=False, ratio=6.25)


def test_usage_counts_in_the_window_of_its_row_if_the_clock_was_set_back_meanwhile() -> None:
    bridge = Bridge(budget(usd=1.0))
    bridge.now += timedelta(days=1)
    tomorrow = bridge.now
    assert bridge.admit("1", cost=0.0)
    bridge.start("1")
    bridge.now = NOON
    bridge.accounts.count(bridge.usage("1", 2.0, created_at=tomorrow))
    assert bridge.admit("2", cost=0.0)
    bridge.now = tomorrow
    assert not bridge.admit("3")


def test_an_actor_does_not_use_up_the_budget_of_another() -> None:
    bridge = Bridge(budget(per="actor"))
    bridge.spend("1", 2.0)
    assert not bridge.admit("2")
    assert bridge.admit("3", ADA._replace(actor="bob"))


def test_all_budgets_have_to_admit() -> None:
    bridge = Bridge(budget(name="a", usd=5.0), budget(name="b", per="group", usd=1.0))
    bridge.spend("1", 2.0)
    assert not bridge.admit("2")
    assert bridge.admit("3", ADA._replace(groups=()))


def test_a_budget_may_only_warn() -> None:
    bridge = Bridge(budget(over="warn"))
    bridge.spend("1", 2.0)
    assert bridge.admit("2")
    assert bridge.accounts.near("2") == "name=b; used=2.00; resets=2026-01-03T00:00:00+00:00"


def test_the_log_says_once_per_window_that_a_budget_is_near_its_limit_or_used_up() -> None:
    bridge = Bridge(budget(warn_at=0.5))
    for id in "abcdefgh":
        bridge.spend(id)
    near, over = bridge.warnings
    assert near == ("is near its limit", "name=b; used=0.50; resets=2026-01-03T00:00:00+00:00; subject='all'")
    assert over[0] == "is used up"
    bridge.now += timedelta(days=1)
    bridge.spend("i", 0.6)
    assert len(bridge.warnings) == 3


def test_an_answer_has_no_state_while_no_budget_is_near_its_limit() -> None:
    bridge = Bridge(budget(warn_at=0.5))
    bridge.admit("a")
    assert bridge.accounts.near("a") is None
    assert bridge.accounts.near("unknown") is None
    bridge.spend("b", 0.5)
    assert bridge.accounts.near("a") == "name=b; used=0.50; resets=2026-01-03T00:00:00+00:00"


@pytest.mark.parametrize(("rule", "admits", "warns"), [("warn", True, 1), ("refuse", False, 1), ("ignore", True, 0)])
def test_unpriced_usage_counts_by_the_configured_rule(rule: str, admits: bool, warns: int) -> None:
    bridge = Bridge(budget(unpriced=rule))
    bridge.spend("1", None)
    bridge.spend("2", None)
    assert bridge.admit("3") is admits
    assert len(bridge.warnings) == warns
    bridge.now += timedelta(days=1)
    assert bridge.admit("4")


@pytest.mark.parametrize(
    ("members", "admits"),
    [
        ({"unpriced": "refuse"}, False),
        ({"unpriced": "refuse", "over": "warn"}, True),
        ({"unpriced": "warn"}, True),
        ({"unpriced": "ignore"}, True),
        ({"unpriced": "refuse", "tokens": 10_000}, True),
        ({"unpriced": "refuse", "match": {"models": ["other-*"]}}, True),
    ],
)
def test_a_model_that_is_known_to_have_no_price_is_refused_before_its_first_answer(
    members: dict[str, Any], admits: bool
) -> None:
    bridge = Bridge(budget(**members))
    asked: list[str] = []

    def is_never_priced(model: str) -> bool:
        asked.append(model)
        return True

    found = bridge.accounts.admit("1", ADA, 0, None, lambda *_: None, is_never_priced=is_never_priced)
    if admits:
        assert found is None and not asked
    else:
        assert found is not None and asked == ["claude-1"]
        assert found.message == (
            "budget b refuses usage without a known price, and model claude-1 has none: 0.00 USD are spent. "
            "It resets at 2026-01-03T00:00:00+00:00."
        )
        assert bridge.accounts.reserved() == {}
        assert bridge.accounts.admit("2", ADA, 0, None, lambda *_: None) is None


def test_a_request_without_a_model_reserves_the_price_of_the_model_behind_its_deployment() -> None:
    bridge = Bridge(budget(usd=1.0))
    asked: list[str] = []

    def price(model: str, _inputs: int, _outputs: int) -> float:
        asked.append(model)
        return 0.25

    party = ADA._replace(model="")
    for id in "12":
        assert bridge.accounts.admit(id, party, 0, None, price, "mine") is None
        bridge.start(id, model="")
        bridge.accounts.count(replace(bridge.end(id), model="gpt-5"))
    assert asked == ["mine", "gpt-5"]


def test_unpriced_usage_does_not_matter_to_a_budget_of_tokens() -> None:
    bridge = Bridge(budget(tokens=10_000, unpriced="refuse"))
    bridge.spend("1", None)
    assert bridge.admit("2")


def test_what_others_have_spent_and_reserved_counts() -> None:
    bridge = Bridge(budget(usd=1.0))
    bridge.spend("1", 0.25)
    bridge.others(Spent("bob", None, "openai", "gpt", usd=0.25), all=0.25)
    assert bridge.admit("2")
    assert not bridge.admit("3")
    bridge.others()
    assert bridge.admit("3")


def test_groups_that_earlier_requests_named_count() -> None:
    bridge = Bridge(budget(per="group"))
    bridge.others(Spent("bob", "red,blue", "openai", "gpt", usd=1.0), Spent("ada", None, "openai", "gpt", usd=1.0))
    for groups, admitted in ((("blue",), False), (("staff",), False), (("green",), True)):
        assert bridge.admit(str(groups), ADA._replace(groups=groups)) is admitted


def test_what_was_read_for_a_window_that_is_over_is_not_used() -> None:
    bridge = Bridge(budget(usd=1.0))
    windows = bridge.accounts.windows()
    others = bridge.accounts.total({key: [Spent("bob", None, "openai", "gpt", usd=2.0)] for key in windows})
    bridge.now += timedelta(days=1)
    bridge.accounts.update(windows, others, {})
    assert bridge.admit("1")


def test_the_model_behind_a_deployment_is_the_one_that_answered_last() -> None:
    bridge = Bridge(budget(per="model", usd=1.0))
    party = ADA._replace(model="")
    assert bridge.accounts.admit("1", party, 0, None, lambda *_: 0.0, "mine") is None
    bridge.start("1", model="")
    bridge.accounts.count(bridge.usage("1", 2.0, model="gpt-5"))
    bridge.accounts.count(replace(bridge.end("1"), model="gpt-5"))
    assert bridge.accounts.admit("2", party, 0, None, lambda *_: 0.0, "mine") is not None
    assert bridge.accounts.admit("3", party, 0, None, lambda *_: 0.0, "yours") is None


def test_names_that_clients_choose_take_no_space_without_usage() -> None:
    bridge = Bridge(budget(per="model", usd=1.0))
    for n in range(100):
        assert bridge.admit(str(n), ADA._replace(model=f"model-{n}"), cost=0.1)
        bridge.start(str(n))
        bridge.accounts.count(bridge.end(str(n), turns=0))
    bridge.others()
    assert bridge.accounts._accounts == {}
