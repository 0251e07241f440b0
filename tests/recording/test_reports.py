"""Usage reports: what belongs to a period, under which day and name, and that all reports have the same totals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aibridge_addon.config.load import load
from aibridge_addon.recording.database import queries
from aibridge_addon.recording.reports import COUNTS, OTHERS, SESSION, Question, Usage, sessions, tools, total, usage
from aibridge_addon.records import Billing, InterceptionStarted, Record, Status, TokenUsage
from tests.support.databases import Database, opened, write
from tests.support.examples import ENDED, STARTED, TOKENS, TOOL, uid

UTC_ZONE = ZoneInfo("UTC")
HOUR = timedelta(hours=1)


def ask(database: Database, *keys: str, zone: ZoneInfo = UTC_ZONE, **more: Any) -> dict[tuple[Any, ...], Usage]:
    with queries(load(None, environ={}, database=database.url)) as rows:
        return usage(rows, Question(keys, zone, **more))


# --- any usage, in any zone -----------------------------------------------------------------------------------------

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "America/Havana",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
)
"""With and without changes of the clock, at and around midnight, and by less than an hour."""
STARTS = (
    datetime(2026, 3, 3, tzinfo=UTC),  # clocks change on 8 March in America
    datetime(2026, 3, 28, tzinfo=UTC),  # on 29 March in Europe, and on 5 April in Australia
    datetime(2026, 9, 26, tzinfo=UTC),  # on 27 September on the Chatham Islands, and on 4 October in Australia
    datetime(2026, 10, 24, tzinfo=UTC),  # on 25 October in Europe, and on 1 November in America
)


def moments(start: datetime) -> st.SearchStrategy[datetime]:
    return st.one_of(
        st.integers(0, 9 * 24 * 60).map(lambda minutes: start + timedelta(minutes=minutes)),
        st.integers(0, 9 * 24 * 4).map(lambda quarters: start + quarters * HOUR / 4 - timedelta.resolution),
    )


@dataclass(frozen=True)
class Request:
    """An interception with its token rows."""

    began: datetime
    ended: datetime | None
    actor: str
    client: str
    session: str
    billing: Billing | None
    failed: bool
    tokens: Sequence[TokenUsage]
    called_at: Sequence[datetime]

    def records(self, number: int) -> list[Record]:
        id = uid(f"i{number}")
        begun = replace(
            STARTED,
            id=id,
            initiator_id=self.actor,
            client=self.client,
            client_session_id=self.session,
            billing=self.billing,
            started_at=self.began,
        )
        rows: list[Record] = [begun]
        rows += [replace(t, id=uid(f"t{number}-{n}"), interception_id=id) for n, t in enumerate(self.tokens)]
        rows += [
            replace(TOOL, id=uid(f"u{number}-{n}"), interception_id=id, created_at=moment)
            for n, moment in enumerate(self.called_at)
        ]
        if self.ended is not None:
            status: Status = "failed" if self.failed else "completed"
            rows.append(replace(ENDED, interception_id=id, ended_at=self.ended, status=status))
        return rows


COSTS = st.sampled_from([None, 0.0, 0.25, 1.5])  # their sums are exact


def token_rows(moment: st.SearchStrategy[datetime]) -> st.SearchStrategy[TokenUsage]:
    return st.builds(
        lambda moment, model, cost, count, turn: replace(
            TOKENS,
            kind="answer",
            created_at=moment,
            model=model,
            cost_usd=cost,
            input_tokens=count,
            cache_read_input_tokens=2 * count,
            cache_write_input_tokens=3 * count,
            output_tokens=5 * count,
            turn=turn,
        ),
        moment,
        st.sampled_from(["", "claude-1", "gpt-5"]),
        COSTS,
        st.integers(0, 1000),
        st.integers(1, 3),
    )


@dataclass(frozen=True)
class Usages:
    """Requests, and the period that is asked about."""

    requests: Sequence[Request]
    since: datetime | None
    until: datetime | None


def usages(start: datetime) -> st.SearchStrategy[Usages]:
    moment = moments(start)
    request = st.builds(
        Request,
        began=moment,
        ended=st.none() | moment,
        actor=st.sampled_from(["ada", "bob"]),
        client=st.sampled_from(["Claude Code", "Codex"]),
        session=st.sampled_from(["s1", "s2", "s3"]),
        billing=st.sampled_from(["api", "subscription", None]),
        failed=st.booleans(),
        tokens=st.lists(token_rows(moment), max_size=3),
        called_at=st.lists(moment, max_size=3),
    )
    borders = st.tuples(moment, moment).map(sorted)
    periods = st.one_of(borders, st.tuples(moment, st.none()), st.tuples(st.none(), moment), st.just((None, None)))
    return st.builds(lambda requests, period: Usages(requests, *period), st.lists(request, max_size=8), periods)


CALLS = (("date",), ("week",), ("month",), ("initiator_id", "client"), ("session_id", "date"))
"""What calls are reported by."""
REPORTS = (
    ("date",),
    ("week",),
    ("month",),
    SESSION,
    ("model",),
    ("initiator_id",),
    ("client",),
    ("provider_name",),
    ("project",),
    ("billing",),
    ("agent_id", "request_class"),
    ("date", "model"),
    ("week", "session_id"),
)


def empty(database: Database) -> None:
    for table in ("hourly_usage", "token_usages", "tool_usages", "interceptions"):
        database.execute(f"delete from aibridge_{table}")


@given(
    used=st.sampled_from(STARTS).flatmap(usages),
    zone=st.one_of(st.sampled_from(ZONES), st.sampled_from(sorted(available_timezones()))).map(ZoneInfo),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_reports_of_a_period_have_the_totals_of_its_rows(database: Database, used: Usages, zone: ZoneInfo) -> None:
    requests, since, until = used.requests, used.since, used.until
    with opened(database) as store:
        empty(database)
        for number, request in enumerate(requests):
            store.write(request.records(number))
    expected = summed(requests, since, until, lambda moment: moment.astimezone(zone).date().isoformat())
    whole = comparable(total(expected.values()))
    with queries(load(None, environ={}, database=database.url)) as rows:
        reports = {keys: usage(rows, Question(keys, zone, since, until)) for keys in REPORTS}
        listed = [sessions(rows, Question(SESSION, zone, since, until), limit) for limit in (0, 2, 100)]
        called = [tools(rows, Question(keys, zone, since, until)) for keys in ((), *CALLS)]
    calls = sum(within(moment, since, until) for request in requests for moment in request.called_at)
    assert [sum(sums["calls"] for sums in found.values()) for found in called] == [calls] * len(called)
    for found in (*reports.values(), *listed):
        assert comparable(total(found.values())) == whole
    every = comparable_report(reports[SESSION])
    assert comparable_report(listed[-1]) == every
    assert all(key == OTHERS or every[key] == comparable(sums) for found in listed for key, sums in found.items())
    days = reports["date",]
    by_day = {day: comparable(sums) for (day,), sums in days.items() if any(comparable(sums))}
    assert by_day == {day: comparable(sums) for day, sums in expected.items() if any(comparable(sums))}


def within(moment: datetime, since: datetime | None, until: datetime | None) -> bool:
    return (since is None or moment >= since) and (until is None or moment < until)


def summed(
    requests: Sequence[Request], since: datetime | None, until: datetime | None, day: Callable[[datetime], str]
) -> dict[str, Usage]:
    found: defaultdict[str, Usage] = defaultdict(Usage)
    for request in requests:
        if request.ended is not None and within(request.ended, since, until):
            found[day(request.ended)].add(Usage(1, int(request.failed)))
        for row in request.tokens:
            if within(row.created_at, since, until):
                billing: str = request.billing or ""
                counts = {name: getattr(row, name) for name in COUNTS}
                costs, unpriced = {billing: row.cost_usd or 0.0}, {billing: int(row.cost_usd is None)}
                found[day(row.created_at)].add(Usage(**counts, costs=costs, unpriced=unpriced))
    return found


def comparable(sums: Usage) -> tuple[Any, ...]:
    counts = [sums.interceptions, sums.failed, *(getattr(sums, name) for name in COUNTS)]
    payers = [(sums.costs.get(payer, 0.0), sums.unpriced.get(payer, 0)) for payer in ("api", "subscription", "")]
    return tuple(counts + [value for payer in payers for value in payer])


# --- examples --------------------------------------------------------------------------------------------------------


def request(name: str, ended: datetime, *tokens: TokenUsage, **changes: Any) -> list[Record]:
    id = uid(name)
    rows = [replace(row, interception_id=id, id=uid(f"{name}-{n}")) for n, row in enumerate(tokens)]
    begun: InterceptionStarted = replace(STARTED, id=id, started_at=ended - HOUR, **changes)
    return [begun, *rows, replace(ENDED, interception_id=id, ended_at=ended, status="completed")]


def row(at: datetime, **changes: Any) -> TokenUsage:
    values: dict[str, Any] = {"input_tokens": 1, "cache_write_input_tokens": 4, "cost_usd": 0.5} | changes
    return replace(TOKENS, created_at=at, kind="answer", **values)


def test_usage_is_booked_when_its_answer_ended_and_not_on_the_first_day_of_its_session(database: Database) -> None:
    late, early = datetime(2026, 11, 1, 23, 59, tzinfo=UTC), datetime(2026, 11, 2, 0, 1, tzinfo=UTC)
    write(database, *request("i1", early, row(late), row(early, turn=3)))
    found = {key: (sums.interceptions, sums.input_tokens) for key, sums in ask(database, "date").items()}
    assert found == {("2026-11-01",): (0, 1), ("2026-11-02",): (1, 1)}
    assert list(ask(database, "date", zone=ZoneInfo("Europe/Berlin"))) == [("2026-11-02",)]
    assert list(ask(database, "week")) == [("2026-10-26",), ("2026-11-02",)]
    assert list(ask(database, "month")) == [("2026-11",)]


def test_both_hours_of_a_clock_that_is_set_back_are_of_the_same_day(database: Database) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    hours = [datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (0, 1)]  # 2:30 both times
    write(database, *request("i1", hours[0], row(hours[0])), *request("i2", hours[1], row(hours[1])))
    assert [(key, sums.input_tokens) for key, sums in ask(database, "date", zone=berlin).items()] == [
        (("2026-10-25",), 2)
    ]


def test_the_end_of_a_period_does_not_belong_to_it_and_its_beginning_does(database: Database) -> None:
    at = datetime(2026, 11, 1, 12, 30, tzinfo=UTC)
    write(database, *request("i1", at, row(at)))
    assert ask(database, "date", since=at)
    assert not ask(database, "date", until=at)
    assert ask(database, "date", until=at + timedelta.resolution)
    assert not ask(database, "date", since=at + timedelta.resolution)


@pytest.mark.parametrize(
    ("actors", "models", "expected"),
    [
        ((), (), {"ada", "bob_1", "bobx1"}),
        (("ada",), (), {"ada"}),
        (("Ada",), (), set()),
        (("bob_1",), (), {"bob_1"}),
        (("b*",), (), {"bob_1", "bobx1"}),
        (("bob?1", "ada"), (), {"ada", "bob_1", "bobx1"}),
        (("*",), ("gpt-*",), {"bob_1"}),
        ((), ("no-[a]",), set()),
        (("x' or '1' = '1",), (), set()),
    ],
)
def test_users_and_models_are_chosen_by_name_or_pattern(
    database: Database, actors: tuple[str, ...], models: tuple[str, ...], expected: set[str]
) -> None:
    at = datetime(2026, 11, 1, 12, tzinfo=UTC)
    for number, (actor, model) in enumerate((("ada", "claude-1"), ("bob_1", "gpt-5"), ("bobx1", "claude-1"))):
        write(database, *request(f"i{number}", at, row(at, model=model), initiator_id=actor))
    for more in ((), ("project",)):
        found = ask(database, "initiator_id", *more, actors=actors, models=models)
        assert {key[0] for key in found} == expected


def test_a_cost_that_is_not_known_is_no_amount_and_is_counted(database: Database) -> None:
    at = datetime(2026, 11, 1, 12, tzinfo=UTC)
    write(database, *request("i1", at, row(at, cost_usd=None)))
    write(database, *request("i2", at, row(at), row(at, cost_usd=None, turn=3), billing="subscription"))
    columns = total(ask(database, "date").values()).columns()
    assert (columns["cost_usd"], columns["unpriced"]) == (0.5, 2)
    assert (columns["api_cost_usd"], columns["subscription_cost_usd"], columns["other_cost_usd"]) == (None, 0.5, 0.0)


def test_a_database_without_hourly_usage_has_the_same_reports(database: Database) -> None:
    at = datetime(2026, 11, 1, 12, 30, tzinfo=UTC)
    write(database, *request("i1", at, row(at)), *request("i2", at + 30 * HOUR, row(at + 29 * HOUR, cost_usd=None)))
    kolkata = ZoneInfo("Asia/Kolkata")
    asked = [("date",), ("model", "month"), ("initiator_id",), ("billing",), ("session_id",)]
    before = [comparable_report(ask(database, *keys, zone=kolkata)) for keys in asked]
    database.execute("drop table aibridge_hourly_usage")
    assert [comparable_report(ask(database, *keys, zone=kolkata)) for keys in asked] == before


def comparable_report(found: dict[tuple[Any, ...], Usage]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    return {key: comparable(sums) for key, sums in found.items()}


def test_counts_that_are_too_large_for_an_integer_do_not_fail(database: Database) -> None:
    at = datetime(2026, 11, 1, 12, tzinfo=UTC)
    rows = [row(at, cache_write_input_tokens=2**62, turn=turn) for turn in (1, 2, 3)]
    write(database, *request("i1", at, *rows))
    (sums,) = ask(database, "project").values()
    assert sums.cache_write_input_tokens == pytest.approx(3 * 2**62)
    assert list(ask(database, "date"))


def test_an_empty_database_has_no_usage(database: Database) -> None:
    write(database)
    assert ask(database, "date") == ask(database, "session_id") == {}


def test_calls_are_counted_by_tool_server_and_injection(database: Database) -> None:
    at = datetime(2026, 11, 1, 23, 45, tzinfo=UTC)
    call = replace(TOOL, invocation_error=None, created_at=at, metadata={}, duration_ms=None)
    injected = replace(call, injected=True, tool="get_time", server_name="time", duration_ms=10)
    answered_with_error = replace(call, metadata={"result_is_error": True}, created_at=at + timedelta(days=200))
    calls = [call, injected, replace(injected, duration_ms=20, invocation_error="boom"), answered_with_error]
    write(database, STARTED, *(replace(one, id=uid(f"c{number}")) for number, one in enumerate(calls)))
    zone = ZoneInfo("Europe/Berlin")
    with queries(load(None, environ={}, database=database.url)) as rows:
        by_day = tools(rows, Question(("date",), zone))
        others = [tools(rows, Question(keys, zone)) for keys in ((), ("initiator_id",), ("month",))]
        first_day = tools(rows, Question((), zone, until=at + timedelta(days=1)))
    read = {"calls": 1, "failed": 0, "timed": 0, "duration_ms": 0}
    timed = {"calls": 2, "failed": 1, "timed": 2, "duration_ms": 30}
    assert by_day == {
        ("Read", "files", 0, "2026-11-02"): read,
        ("get_time", "time", 1, "2026-11-02"): timed,
        ("Read", "files", 0, "2027-05-21"): read | {"failed": 1},
    }
    assert first_day == {("Read", "files", 0): read, ("get_time", "time", 1): timed}
    for found in others:
        sums = {name: sum(row[name] for row in found.values()) for name in read}
        assert sums == {"calls": 4, "failed": 2, "timed": 2, "duration_ms": 30}
