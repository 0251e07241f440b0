"""The counting sink, read as Prometheus reads it."""

from __future__ import annotations

import asyncio
import gc
import math
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from aibridge_addon import records
from aibridge_addon.config import schema
from aibridge_addon.config.schema import Settings
from aibridge_addon.proxy.workers.endpoint import Endpoint
from aibridge_addon.proxy.workers.supervisor import Supervisor
from aibridge_addon.records import Record
from aibridge_addon.telemetry.prometheus import families, metrics
from aibridge_addon.telemetry.prometheus.metrics import Metrics
from tests.support import examples
from tests.support.reading import NOON

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"

STARTED = examples.STARTED
ENDED = replace(examples.ENDED, status="completed", model=None, ended_at=NOON + timedelta(seconds=3))
USAGE = replace(
    examples.TOKENS,
    model="claude-1-20260101",
    input_tokens=2,
    output_tokens=66,
    cache_read_input_tokens=13993,
    cache_write_input_tokens=22,
    extra={"cache_read_input": 13993, "cache_creation_input": 22},
)
PROMPT = examples.PROMPT
TOOL = replace(examples.TOOL, server_name=None, server_url=None)
PASSTHROUGH = examples.PASSTHROUGH

PROVIDERS = Settings.model_validate({"providers": [{"name": "anthropic-eu", "type": "anthropic"}]}).providers

Labels = dict[str, str]


def make(*records: Record, **settings: object) -> Metrics:
    made = Metrics(schema.Metrics.model_validate(settings))
    for record in records:
        made.emit(record)
    return made


def scrape(made: Metrics) -> dict[str, list[tuple[Labels, float]]]:
    """Every sample, by its name without the prefix."""
    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(generate_latest(made.registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name.removeprefix("aibridge_"), []).append((sample.labels, sample.value))
    return found


def collect(made: Metrics, name: str) -> list[tuple[Labels, float]]:
    """The samples of one name as they are before they become text, which takes long for thousands."""
    samples = (sample for family in made.registry.collect() for sample in family.samples)
    return [(sample.labels, sample.value) for sample in samples if sample.name == f"aibridge_{name}"]


def as_openmetrics(made: Metrics) -> str:
    return bytes(openmetrics.generate_latest(made.registry)).decode()  # type: ignore[no-untyped-call]


def by(label: str, samples: list[tuple[Labels, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for labels, value in samples:
        sums[labels[label]] = sums.get(labels[label], 0) + value
    return sums


def test_an_interception_is_in_flight_until_it_ends() -> None:
    place = {"provider": "anthropic-eu", "model": "claude-1", "route": "/v1/messages"}
    made = make(STARTED)
    assert scrape(made)["interceptions_inflight"] == [(place, 1)]
    made.emit(ENDED)
    assert scrape(made)["interceptions_inflight"] == [(place, 0)]


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_an_ended_interception_is_counted_with_its_status(status: str) -> None:
    labels = {
        "provider": "anthropic-eu",
        "model": "claude-1",
        "status": status,
        "route": "/v1/messages",
        "method": "POST",
        "initiator_id": "ada",
        "client": "Claude Code",
    }
    ended = replace(ENDED, status="completed" if status == "completed" else "failed")
    assert scrape(make(STARTED, ended))["interceptions_total"] == [(labels, 1)]


def test_durations_fall_into_the_documented_buckets() -> None:
    found = scrape(make(STARTED, ENDED))
    buckets = [(labels["le"], value) for labels, value in found["interceptions_duration_seconds_bucket"]]
    assert buckets == [
        ("0.5", 0),
        ("2.0", 0),
        ("5.0", 1),
        ("15.0", 1),
        ("30.0", 1),
        ("60.0", 1),
        ("120.0", 1),
        ("+Inf", 1),
    ]
    model = {"provider": "anthropic-eu", "model": "claude-1"}
    assert found["interceptions_duration_seconds_sum"] == [(model, 3)]
    assert found["interceptions_duration_seconds_count"] == [(model, 1)]


def test_a_value_on_a_buckets_bound_is_in_that_bucket() -> None:
    found = scrape(make(STARTED, replace(ENDED, ended_at=NOON + timedelta(seconds=2))))
    buckets = {labels["le"]: value for labels, value in found["interceptions_duration_seconds_bucket"]}
    assert (buckets["0.5"], buckets["2.0"]) == (0, 1)


def test_a_clock_that_was_set_back_gives_no_negative_duration() -> None:
    found = scrape(make(STARTED, replace(ENDED, ended_at=NOON - timedelta(hours=1))))
    assert [value for _, value in found["interceptions_duration_seconds_sum"]] == [0]


def test_the_model_that_answered_stands_in_where_the_request_named_none() -> None:
    found = scrape(make(replace(STARTED, model=""), USAGE, replace(ENDED, model="gpt-5")))
    assert by("model", found["tokens_total"]).keys() == {"claude-1-20260101"}
    assert by("model", found["interceptions_total"]) == {"gpt-5": 1}
    assert by("model", found["interceptions_duration_seconds_count"]) == {"gpt-5": 1}
    assert found["interceptions_inflight"] == [
        ({"provider": "anthropic-eu", "model": "unknown", "route": "/v1/messages"}, 0)
    ]


def test_tokens_are_counted_by_type_under_the_model_that_was_asked_for() -> None:
    found = scrape(make(STARTED, USAGE, USAGE))["tokens_total"]
    assert by("type", found) == {
        "input": 4,
        "output": 132,
        "cache_read_input_tokens": 27986,
        "cache_write_input_tokens": 44,
        "cache_read_input": 27986,
        "cache_creation_input": 44,
    }
    assert {(s["provider"], s["model"], s["initiator_id"], s["client"]) for s, _ in found} == {
        ("anthropic-eu", "claude-1", "ada", "Claude Code")
    }


def test_a_type_of_tokens_is_shown_although_its_first_count_is_zero() -> None:
    """Prometheus sees no increase in a series that begins with its first tokens."""
    found = scrape(make(STARTED, replace(USAGE, cache_read_input_tokens=0)))
    assert by("type", found["tokens_total"])["cache_read_input_tokens"] == 0


@pytest.mark.parametrize("value", ["standard", True, None, -1, math.nan, math.inf, 10**400, {"a": 1}])
def test_only_numbers_that_can_be_counts_are_counted(value: object) -> None:
    found = scrape(make(STARTED, replace(USAGE, extra={"odd": value, "after": 1})))
    assert "odd" not in by("type", found["tokens_total"])
    assert by("type", found["tokens_total"])["after"] == 1


def test_a_further_count_that_is_named_like_one_of_ours_does_not_count_twice() -> None:
    found = scrape(make(STARTED, replace(USAGE, extra={"output": 1000})))
    assert by("type", found["tokens_total"])["output"] == 66


def test_negative_and_absurd_counts_do_not_spoil_a_total() -> None:
    found = scrape(make(STARTED, USAGE, replace(USAGE, input_tokens=-5, output_tokens=10**30, extra={})))
    assert by("type", found["tokens_total"])["input"] == 2
    assert by("type", found["tokens_total"])["output"] == 66


def test_only_prompts_that_are_not_empty_count() -> None:
    found = scrape(make(STARTED, PROMPT, replace(PROMPT, prompt="")))
    labels = {
        "provider": "anthropic-eu",
        "model": "claude-1",
        "initiator_id": "ada",
        "client": "Claude Code",
    }
    assert found["prompts_total"] == [(labels, 1)]


def test_injected_and_other_tools_are_two_metrics() -> None:
    injected = replace(TOOL, injected=True, tool="now", server_name="time", server_url="https://time.test/mcp")
    program = replace(TOOL, injected=True, tool="now", server_name="clock")
    found = scrape(make(STARTED, TOOL, injected, program))
    model = {"provider": "anthropic-eu", "model": "claude-1"}
    assert found["non_injected_tool_selections_total"] == [({**model, "name": "Read"}, 1)]
    assert found["injected_tool_invocations_total"] == [
        ({**model, "server": "https://time.test/mcp", "name": "now"}, 1),
        ({**model, "server": "clock", "name": "now"}, 1),
    ]


def test_passthrough_requests_are_counted_and_odd_methods_are_other() -> None:
    found = scrape(make(PASSTHROUGH, replace(PASSTHROUGH, method="BREW"), replace(PASSTHROUGH, method="get")))
    assert by("method", found["passthrough_total"]) == {"GET": 1, "other": 2}


def test_passthrough_requests_that_may_cost_money_are_counted_apart() -> None:
    found = scrape(make(PASSTHROUGH, replace(PASSTHROUGH, billable=True), replace(PASSTHROUGH, billable=True)))
    assert by("billable", found["passthrough_total"]) == {"false": 1, "true": 2}


def test_thoughts_are_not_counted() -> None:
    assert scrape(make(examples.THOUGHT)) == scrape(make())


def test_records_of_an_interception_whose_start_was_not_seen_count_as_unknown() -> None:
    """After a reload, what is under way ends with other observers than it began with."""
    found = scrape(make(USAGE, PROMPT, TOOL, ENDED))
    assert by("type", found["tokens_total"])["output"] == 66
    for name in ("tokens_total", "prompts_total", "non_injected_tool_selections_total", "interceptions_total"):
        assert by("provider", found[name]).keys() == {"unknown"}
    assert "interceptions_inflight" not in found
    assert "interceptions_duration_seconds_count" not in found


def test_interceptions_that_never_end_are_forgotten_oldest_first() -> None:
    made = make(*(replace(STARTED, id=str(number)) for number in range(metrics.MAX_OPEN + 1)))
    assert by("model", scrape(made)["interceptions_inflight"]) == {"claude-1": metrics.MAX_OPEN}
    made.emit(replace(ENDED, interception_id="1"))
    made.emit(replace(ENDED, interception_id="0"))
    found = scrape(made)
    assert by("model", found["interceptions_inflight"]) == {"claude-1": metrics.MAX_OPEN - 1}
    assert by("provider", found["interceptions_total"]) == {"anthropic-eu": 1, "unknown": 1}


def test_a_record_that_cannot_be_counted_raises_nothing_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    odd = replace(ENDED, ended_at=datetime(2026, 1, 1, 12))
    made = make(STARTED, odd, STARTED, odd, PASSTHROUGH)
    assert [record.getMessage() for record in caplog.records] == ["aibridge: a InterceptionEnded cannot be counted"]
    assert by("method", scrape(made)["passthrough_total"]) == {"GET": 1}


def test_tunnels_times_and_costs_are_counted() -> None:
    made = make()
    made.emit(records.Tunnelled())
    made.emit(records.Tunnelled())
    made.emit(records.FirstByte("anthropic-eu", "m", 0.3))
    made.emit(records.Overhead("anthropic-eu", 0.0007))
    for cost in (0.25, 0.5):
        made.emit(replace(USAGE, model="m", cost_usd=cost))
    made.emit(replace(USAGE, model="new", unpriced="no price known for this model"))
    found = scrape(made)
    assert found["tunnels_total"] == [({}, 2)]
    assert found["time_to_first_byte_seconds_sum"] == [({"provider": "anthropic-eu", "model": "m"}, 0.3)]
    assert found["overhead_seconds_sum"] == [({"provider": "anthropic-eu"}, 0.0007)]
    unseen = {"provider": "anthropic-eu", "model": "m", "initiator_id": "unknown", "client": "unknown"}
    assert found["cost_usd_total"] == [(unseen, 0.75)]
    assert found["unpriced_token_usages_total"] == [({"provider": "anthropic-eu", "model": "new"}, 1)]


def test_costs_are_counted_by_actor_and_client() -> None:
    found = scrape(make(STARTED, replace(USAGE, model="m", cost_usd=0.5)))
    labels = {"provider": "anthropic-eu", "model": "m", "initiator_id": "ada", "client": "Claude Code"}
    assert found["cost_usd_total"] == [(labels, 0.5)]


def test_refusals_of_central_keys_are_counted() -> None:
    attempt = records.UpstreamAttempt("anthropic-eu", "/v1/messages", "next_key", refused_key="unauthorized")
    shown = replace(attempt, step="show", refused_key=None, keys_tried=2)
    found = scrape(make(attempt, shown, records.KeysExhausted("anthropic-eu", "rate_limited")))
    provider = {"provider": "anthropic-eu"}
    assert found["key_pool_state_transitions_total"] == [({**provider, "reason": "unauthorized"}, 1)]
    assert found["key_pool_exhaustions_total"] == [({**provider, "outcome": "rate_limited"}, 1)]
    buckets = {labels["le"]: value for labels, value in found["key_pool_failover_attempts_bucket"]}
    assert (buckets["1.0"], buckets["2.0"]) == (0, 1)


def test_refusals_of_central_keys_are_zero_from_the_start() -> None:
    keys = Settings.model_validate({"providers": [{"name": "p", "type": "openai", "api_key": ["a" * 20, "b" * 20]}]})
    found = scrape(Metrics(schema.Metrics(), providers=keys.providers))
    for name, label in (("key_pool_state_transitions_total", "reason"), ("key_pool_exhaustions_total", "outcome")):
        assert by(label, found[name]) == {"rate_limited": 0, "unauthorized": 0}


def test_calls_of_mcp_servers_are_counted_with_their_errors_and_durations() -> None:
    call = records.ToolUsage("i", "r", "c", "add", {}, True, NOON, server_name="time", duration_ms=20)
    failed = replace(call, metadata={"error_kind": "timeout"}, duration_ms=60_000)
    found = scrape(make(call, failed, replace(call, server_name=None), replace(call, injected=False)))
    assert found["mcp_calls_total"] == [({"server": "time"}, 2)]
    assert found["mcp_call_errors_total"] == [({"server": "time", "kind": "timeout"}, 1)]
    buckets = by("le", found["mcp_call_duration_seconds_bucket"])
    assert (buckets["0.01"], buckets["0.05"], buckets["60.0"]) == (0, 1, 2)


def test_states_of_keys_servers_and_providers_are_read_at_every_scrape() -> None:
    now = records.Readiness(
        key_pools=(records.KeyPoolState("anthropic-eu", valid=2, rate_limited=1, unauthorized=0),),
        servers=(records.ServerState("time", True, 3, 1), records.ServerState("mail", False, 0, 0)),
    )
    found = scrape(Metrics(schema.Metrics(), lambda: now, providers=PROVIDERS, internal_errors=lambda: 4))
    assert by("state", found["key_pool_state"]) == {"valid": 2, "temporary": 1, "permanent": 0}
    assert by("server", found["mcp_server_up"]) == {"time": 1, "mail": 0}
    assert by("server", found["mcp_tools"]) == {"time": 3, "mail": 0}
    assert by("server", found["mcp_tools_left_out"]) == {"time": 1, "mail": 0}
    info = {"provider_name": "anthropic-eu", "provider_type": "anthropic", "status": "enabled"}
    assert found["provider_info"] == [(info, 1)]
    assert found["internal_errors_total"] == [({}, 4)]


def test_a_price_that_is_none_does_not_spoil_the_total() -> None:
    made = make()
    for price in (1.0, math.nan, -1.0, math.inf):
        made.emit(replace(USAGE, model="m", cost_usd=price))
    assert [value for _, value in scrape(made)["cost_usd_total"]] == [1]


def test_the_sinks_are_asked_for_their_queues_and_losses_at_every_scrape() -> None:
    now = [records.Readiness(), records.Readiness(waiting=7, lost=3, spooled_bytes=512, expired=9)]
    made = Metrics(schema.Metrics(), lambda: now[0])
    assert scrape(made)["recorder_queue_depth"] == [({}, 0)]
    del now[0]
    found = scrape(made)
    assert (found["recorder_queue_depth"], found["recorder_lost_records_total"]) == ([({}, 7)], [({}, 3)])
    assert found["recorder_spooled_bytes"] == [({}, 512)]
    assert found["retention_backlog"] == [({}, 9)]


def test_a_breaker_is_seen_from_its_first_change_on() -> None:
    made = make()
    assert "circuit_breaker_state" not in scrape(made)
    for state in (1.0, 0.5, 1.0, 0.5, 0.0):
        made.emit(records.BreakerChanged("anthropic-eu", "/v1/messages", "m", state))
    made.emit(records.BreakerRejected("anthropic-eu", "/v1/messages", "m"))
    found = scrape(made)
    labels = {"provider": "anthropic-eu", "endpoint": "/v1/messages", "model": "m"}
    assert found["circuit_breaker_state"] == [(labels, 0)]
    assert found["circuit_breaker_trips_total"] == [(labels, 2)]
    assert found["circuit_breaker_rejects_total"] == [(labels, 1)]


def test_without_the_initiator_label_no_metric_has_it() -> None:
    found = scrape(make(STARTED, USAGE, PROMPT, ENDED, initiator_label=False))
    assert by("client", found["interceptions_total"]) == {"Claude Code": 1}
    assert not any("initiator_id" in labels for samples in found.values() for labels, _ in samples)


def test_the_prefix_begins_every_name() -> None:
    text = generate_latest(make(prefix="coder_ai_gateway_").registry).decode()
    names = [family.name for family in text_string_to_metric_families(text)]
    assert names and all(name.startswith("coder_ai_gateway_") for name in names)


def test_there_are_no_created_series() -> None:
    made = make(STARTED, USAGE, ENDED)
    assert b"_created" not in generate_latest(made.registry)
    assert "_created" not in as_openmetrics(made)


def test_two_instances_share_nothing() -> None:
    """A reload makes a second one in the same process."""
    busy, idle = make(STARTED, USAGE, ENDED), make()
    assert "tokens_total" in scrape(busy) and "tokens_total" not in scrape(idle)


# --- hostile clients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "change", "limit"),
    [
        ("model", lambda n: (replace(STARTED, id=n, model=n), replace(ENDED, interception_id=n)), metrics.MODELS),
        (
            "initiator_id",
            lambda n: (replace(STARTED, id=n, initiator_id=n), replace(ENDED, interception_id=n)),
            metrics.INITIATORS,
        ),
        ("client", lambda n: (replace(STARTED, id=n, client=n), replace(ENDED, interception_id=n)), metrics.CLIENTS),
        ("name", lambda n: (replace(TOOL, tool=n),), metrics.TOOLS),
        ("type", lambda n: (replace(USAGE, extra={n: 1}),), metrics.TOKEN_TYPES),
    ],
    ids=["model", "initiator_id", "client", "name", "type"],
)
def test_a_label_has_a_limited_number_of_values(
    label: str, change: Callable[[str], tuple[Record, ...]], limit: int
) -> None:
    made = make()
    for number in range(limit + 10):
        for record in change(f"value-{number}"):
            made.emit(record)
    metric = {"name": "non_injected_tool_selections_total", "type": "tokens_total"}.get(label, "interceptions_total")
    for record in change("value-0"):  # those that were first stay themselves
        made.emit(record)
    found = {value: n for value, n in by(label, scrape(made)[metric]).items() if re.match("value|other", value)}
    assert len(found) == limit + 1
    assert (found["value-0"], found["value-1"], found["other"]) == (2, 1, 10)


def test_a_client_that_makes_everything_up_gets_no_more_series_and_no_more_memory() -> None:
    made = make()

    def interceptions(first: int, number: int) -> None:
        for n in map(str, range(first, first + number)):
            made.emit(replace(STARTED, id=n, model=f"m{n}", initiator_id=f"i{n}", client=f"c{n}"))
            made.emit(replace(TOOL, interception_id=n, tool=f"t{n}"))
            made.emit(replace(TOOL, interception_id=n, tool=f"t{n}", injected=True, server_url=f"https://{n}.test"))
            made.emit(replace(USAGE, interception_id=n, model=f"a{n}", extra={f"k{n}": 1}))
            made.emit(replace(PASSTHROUGH, method=f"M{n}"))
            made.emit(replace(ENDED, interception_id=n, model=f"a{n}"))
            made.emit(replace(USAGE, interception_id=n, model=f"m{n}", cost_usd=1.0))
            made.emit(records.FirstByte("anthropic-eu", f"m{n}", 1.0))
            made.emit(records.BreakerChanged("anthropic-eu", "/v1/messages", f"m{n}", 1.0))

    def size() -> int:
        return sum(len(family.samples) for family in made.registry.collect())

    interceptions(0, 10_000)
    before = size()
    tracemalloc.start()
    interceptions(10_000, 10_000)
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size() == before < 25_000
    assert grown < 100_000
    assert sum(n for labels, n in collect(made, "interceptions_total")) == 20_000


def test_a_metric_has_a_limited_number_of_label_sets_and_loses_no_count() -> None:
    made = make()
    for number in range(families.MAX_SERIES + 30):
        initiator, model = divmod(number, metrics.MODELS)
        made.emit(replace(STARTED, model=f"m{model}", initiator_id=str(initiator)))
        made.emit(ENDED)
    found = collect(made, "interceptions_total")
    assert len(found) == families.MAX_SERIES + 1
    labels, count = found[-1]
    assert (labels["provider"], labels["status"], labels["route"]) == ("anthropic-eu", "completed", "/v1/messages")
    assert (labels["model"], labels["initiator_id"], labels["client"], count) == ("other", "other", "other", 30)


def test_a_gauge_goes_down_where_it_went_up_when_its_label_sets_are_used_up() -> None:
    made = make()
    starts = [
        replace(STARTED, id=f"{route}-{model}", model=f"m{model}", route=f"/{route}")
        for route in range(families.MAX_SERIES // metrics.MODELS + 1)
        for model in range(metrics.MODELS)
    ]
    for started in starts:
        made.emit(started)
    labels, count = collect(made, "interceptions_inflight")[-1]
    assert labels == {"provider": "anthropic-eu", "model": "other", "route": "/100"}
    assert count == metrics.MODELS
    for started in starts:
        made.emit(replace(ENDED, interception_id=started.id))
    assert {value for _, value in collect(made, "interceptions_inflight")} == {0}


def test_a_histogram_has_a_limited_number_of_label_sets() -> None:
    made = make()
    providers = families.MAX_HISTOGRAMS // metrics.MODELS + 1
    for provider in range(providers):
        for model in range(metrics.MODELS):
            made.emit(records.FirstByte(f"p{provider}", f"m{model}", 1))
    counts = collect(made, "time_to_first_byte_seconds_count")
    assert len(counts) == families.MAX_HISTOGRAMS + 1
    labels, count = counts[-1]
    assert labels == {"provider": f"p{providers - 1}", "model": "other"}
    assert count == metrics.MODELS


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\x00b", "a\x85b", "a\u2028b", "a\ud800b", 'a"b', "a\\b", "a{b}"])
def test_no_text_of_a_client_breaks_the_formats(text: str) -> None:
    made = make(replace(STARTED, model=text), ENDED)
    shown = re.sub("[^ -~]", "\ufffd", text)
    assert by("model", scrape(made)["interceptions_total"]) == {shown: 1}
    families = openmetrics_parser.text_string_to_metric_families(as_openmetrics(made))  # type: ignore[no-untyped-call]
    assert shown in {sample.labels.get("model") for family in families for sample in family.samples}


def test_a_long_text_is_cut() -> None:
    found = scrape(make(replace(STARTED, model="m" * 1_000_000)))
    assert by("model", found["interceptions_inflight"]) == {"m" * 128: 1}


def test_a_usage_of_countless_further_counts_is_cut() -> None:
    found = scrape(make(STARTED, replace(USAGE, extra={f"k{n}": 1 for n in range(100_000)})))
    assert len(found["tokens_total"]) == 4 + metrics.TOKEN_TYPES


def test_numbers_from_several_threads_add_up_while_they_are_scraped() -> None:
    made = make()

    def price() -> None:
        for number in range(2_000):
            made.emit(replace(USAGE, model=f"model-{number % 300}", cost_usd=1.0))

    threads = [Thread(target=price) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        scrape(made)
    found = scrape(made)["cost_usd_total"]
    assert sum(value for _, value in found) == 8_000
    assert len(found) == metrics.MODELS + 1


@pytest.mark.parametrize("named", [True, False])
def test_the_share_of_a_budget_names_actors_only_if_the_others_do(named: bool) -> None:
    made = metrics.Metrics(schema.Metrics(initiator_label=named))
    made.emit(records.BudgetUsed("daily", "ada", names_actor=True, ratio=0.5))
    made.emit(records.BudgetUsed("whole", "all", names_actor=False, ratio=0.25))
    text = generate_latest(made.registry).decode()
    assert ('aibridge_budget_used_ratio{name="daily",subject="ada"} 0.5' in text) is named
    assert 'aibridge_budget_used_ratio{name="whole",subject="all"} 0.25' in text


# --- the document ---------------------------------------------------------------------------------------------


async def test_the_document_names_every_metric_with_its_type_and_labels_and_no_other() -> None:
    state = records.Readiness(
        key_pools=(records.KeyPoolState("anthropic-eu", 1, 0, 0),), servers=(records.ServerState("time", True, 3, 1),)
    )
    made = Metrics(schema.Metrics(), lambda: state, providers=PROVIDERS)
    for record in (STARTED, USAGE, PROMPT, TOOL, replace(TOOL, injected=True), PASSTHROUGH, ENDED):
        made.emit(record)
    made.emit(replace(TOOL, injected=True, server_name="time", metadata={"error_kind": "tool"}, duration_ms=1))
    made.emit(replace(USAGE, cost_usd=1.0))
    made.emit(records.FirstByte("anthropic-eu", "m", 1))
    made.emit(records.Overhead("anthropic-eu", 1))
    made.emit(records.BreakerChanged("anthropic-eu", "/v1/messages", "m", 1))
    made.emit(records.BreakerRejected("anthropic-eu", "/v1/messages", "m"))
    made.emit(records.UpstreamAttempt("anthropic-eu", "/v1/messages", "show", "unauthorized", 2))
    made.emit(records.KeysExhausted("anthropic-eu", "rate_limited"))
    made.emit(records.Refused("budget_exceeded"))
    made.emit(records.LeftUnread("limits.answer"))
    made.emit(records.BudgetUsed("daily", "ada", names_actor=True, ratio=0.5))
    made.emit(examples.PLAN_LIMIT)
    exposed = {}
    for family in text_string_to_metric_families(generate_latest(made.registry).decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exposed[name] = (family.type, labels)
    supervisor = Supervisor(lambda *_: (), 1, stopped_within=lambda: 0.0)
    for metric in Endpoint(supervisor, schema.Metrics(), asyncio.get_running_loop()).own_metrics():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        exposed[name] = (metric.type, {"worker"})
    rows = re.findall(r"^\| `(aibridge_\w+)` \| (\w+) \| ([\w, ]*?) ?\| ", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name: (kind, set(filter(None, labels.split(", ")))) for name, kind, labels in rows}
    assert documented == exposed
    assert len(documented) == len(rows) == 42


def test_the_document_tells_the_buckets() -> None:
    text = DOCUMENT.read_text()
    for bounds in (metrics.DURATIONS, metrics.FIRST_BYTES, metrics.OVERHEADS):
        assert f"Buckets {', '.join(f'{bound:g}' for bound in bounds)} |" in text


def test_the_queries_of_the_document_name_metrics_that_exist() -> None:
    rows = set(re.findall(r"^\| `(aibridge_\w+)`", DOCUMENT.read_text(), re.MULTILINE))
    queries = re.findall(r"```promql\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    used = {name.removesuffix("_bucket") for query in queries for name in re.findall(r"aibridge_\w+", query)}
    assert used and used <= rows
