"""Limits of plans in headers and events. The formats are those of the sources that `dialects/limits.py` names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.dialects.limits import (
    MAX_RATIO,
    MAX_WINDOWS,
    LimitWindow,
    limits_in_event,
    limits_in_headers,
)
from tests.support.reading import NOON

SOON = datetime(2026, 1, 2, 17, tzinfo=UTC)
EPOCH = str(int(SOON.timestamp()))
Headers = list[tuple[str, str]]

SUBSCRIPTION = [
    ("anthropic-ratelimit-unified-status", "allowed_warning"),
    ("anthropic-ratelimit-unified-reset", EPOCH),
    ("anthropic-ratelimit-unified-5h-status", "allowed_warning"),
    ("anthropic-ratelimit-unified-5h-reset", EPOCH),
    ("anthropic-ratelimit-unified-5h-utilization", "0.91"),
    ("anthropic-ratelimit-unified-5h-surpassed-threshold", "0.9"),
    ("anthropic-ratelimit-unified-7d-status", "allowed"),
    ("anthropic-ratelimit-unified-7d-reset", "2026-01-02T17:00:00Z"),
    ("anthropic-ratelimit-unified-7d-utilization", "0.12"),
    ("anthropic-ratelimit-unified-representative-claim", "five_hour"),
    ("anthropic-ratelimit-unified-overage-status", "rejected"),
    ("anthropic-ratelimit-unified-overage-disabled-reason", "out_of_credits"),
    ("anthropic-ratelimit-unified-fallback-percentage", "0.5"),
]


def read(*headers: tuple[str, str]) -> dict[str, LimitWindow]:
    found = limits_in_headers(headers, NOON)
    assert len({window.name for window in found}) == len(found)
    return {window.name: window for window in found}


def test_windows_of_a_subscription_have_the_share_that_is_spent() -> None:
    assert read(*SUBSCRIPTION) == {
        "unified": LimitWindow("unified", resets_at=SOON, metadata={"status": "allowed_warning"}),
        "5h": LimitWindow(
            "5h",
            0.91,
            resets_at=SOON,
            metadata={"status": "allowed_warning", "surpassed_threshold": 0.9, "representative": True},
        ),
        "7d": LimitWindow("7d", 0.12, resets_at=SOON, metadata={"status": "allowed"}),
        "overage": LimitWindow("overage", metadata={"status": "rejected"}),
    }


def test_a_claim_of_a_model_names_its_window() -> None:
    headers = [("anthropic-ratelimit-unified-7d_opus-utilization", "1.02")]
    claim = ("anthropic-ratelimit-unified-representative-claim", "seven_day_opus")
    found = read(*headers, claim)["7d_opus"]
    assert (found.used_ratio, found.metadata) == (1.02, {"representative": True})


def test_windows_of_a_key_have_a_limit_and_a_remainder() -> None:
    headers = [
        ("Anthropic-RateLimit-Requests-Limit", "50"),
        ("anthropic-ratelimit-requests-remaining", "49"),
        ("anthropic-ratelimit-requests-reset", "2026-01-02T12:00:01Z"),
        ("anthropic-ratelimit-input-tokens-limit", "30000"),
        ("anthropic-ratelimit-input-tokens-remaining", "0"),
        ("anthropic-ratelimit-input-tokens-reset", "2026-01-02T12:01:00Z"),
        ("anthropic-priority-input-tokens-limit", "10000"),
        ("anthropic-priority-input-tokens-remaining", "9618"),
        ("retry-after", "5"),
    ]
    later = NOON + timedelta(seconds=1), NOON + timedelta(minutes=1)
    assert read(*headers) == {
        "requests": LimitWindow("requests", 0.02, 50, 49, later[0], is_counted=True),
        "input-tokens": LimitWindow("input-tokens", 1.0, 30_000, 0, later[1], is_counted=True),
        "priority-input-tokens": LimitWindow("priority-input-tokens", 0.0382, 10_000, 9_618, is_counted=True),
    }


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("6m0s", 360),
        ("1s", 1),
        ("17ms", 0.017),
        ("1h2m3.5s", 3723.5),
        ("2d1h", 176_400),
        ("59.998s", 59.998),
        ("60", 60),
        ("6m0s9", None),
        ("soon", None),
        ("-1", None),
        ("99999999h", None),
    ],
)
def test_openai_resets_are_durations(reset: str, seconds: float | None) -> None:
    found = read(
        ("x-ratelimit-limit-tokens", "150000"),
        ("x-ratelimit-remaining-tokens", "149984"),
        ("x-ratelimit-reset-tokens", reset),
    )
    resets_at = None if seconds is None else NOON + timedelta(seconds=seconds)
    assert found == {"tokens": LimitWindow("tokens", 0.000107, 150_000, 149_984, resets_at, is_counted=True)}


@pytest.mark.parametrize("reset", [EPOCH, f"{EPOCH}000", "2026-01-02T18:00:00+01:00", "2026-01-02T17:00:00"])
def test_other_resets_are_moments(reset: str) -> None:
    found = read(("anthropic-ratelimit-unified-5h-utilization", "0"), ("anthropic-ratelimit-unified-5h-reset", reset))
    assert found["5h"].resets_at == SOON


def test_codex_names_windows_with_percentages_and_other_limits_beside_them() -> None:
    headers = [
        ("x-codex-primary-used-percent", "12.5"),
        ("x-codex-primary-window-minutes", "300"),
        ("x-codex-primary-reset-at", EPOCH),
        ("x-codex-secondary-used-percent", "73"),
        ("x-codex-secondary-window-minutes", "10080"),
        ("x-codex-secondary-reset-after-seconds", "60"),
        ("x-codex-bengalfox-primary-used-percent", "100"),
        ("x-codex-bengalfox-secondary-used-percent", "0"),
        ("x-codex-primary-over-secondary-limit-percent", "20"),
        ("x-codex-credits-has-credits", "true"),
    ]
    assert read(*headers) == {
        "primary": LimitWindow("primary", 0.125, resets_at=SOON, metadata={"window_minutes": 300}),
        "secondary": LimitWindow(
            "secondary", 0.73, resets_at=NOON + timedelta(minutes=1), metadata={"window_minutes": 10080}
        ),
        "bengalfox-primary": LimitWindow("bengalfox-primary", 1.0),
    }


def test_codex_events_say_the_same_as_the_headers() -> None:
    event = {
        "type": "codex.rate_limits",
        "plan_type": "plus",
        "metered_limit_name": "codex",
        "rate_limits": {
            "primary": {"used_percent": 12.5, "window_minutes": 300, "reset_at": int(EPOCH)},
            "secondary": {"used_percent": 87, "window_minutes": 10080, "reset_after_seconds": 60},
        },
    }
    assert list(limits_in_event(event, NOON)) == [
        LimitWindow("primary", 0.125, resets_at=SOON, metadata={"window_minutes": 300, "plan": "plus"}),
        LimitWindow(
            "secondary",
            0.87,
            resets_at=NOON + timedelta(minutes=1),
            metadata={"window_minutes": 10080, "plan": "plus"},
        ),
    ]
    [other] = limits_in_event(
        {"metered_limit_name": "codex_other", "rate_limits": {"primary": {"used_percent": 1}}}, NOON
    )
    assert other.name == "other-primary"


def test_copilot_quotas_are_query_strings_with_the_percentage_that_is_left() -> None:
    rest = "ovPerm=false&rst=2026-01-02T17%3A00%3A00Z"
    headers = [
        ("X-Quota-Snapshot-Premium_Interactions", f"ent=300&ov=0.0&rem=98.5&{rest}"),
        ("x-quota-snapshot-premium_models", f"ent=300&ov=12.0&rem=0.0&{rest}"),
        ("x-quota-snapshot-chat", f"ent=-1&rem=100.0&{rest}"),
        ("x-usage-ratelimit-session", f"ent=0&rem=5.7&{rest}"),
    ]
    assert read(*headers) == {
        "premium_interactions": LimitWindow("premium_interactions", 0.015, 300, 295.5, SOON),
        "premium_models": LimitWindow("premium_models", 1.04, 300, 0, SOON, metadata={"overage": 12}),
        "chat": LimitWindow("chat", metadata={"unlimited": True}),
        "session": LimitWindow("session", 0.943, resets_at=SOON),
    }


@pytest.mark.parametrize(
    "headers",
    [
        [("anthropic-ratelimit-unified-5h-utilization", value)]
        for value in ("", "nan", "inf", "1e400", "9" * 400, "-", "0x1", "١", "0.5\x00", "1_0")
    ]
    + [[("anthropic-ratelimit-unified-5h-status", status)] for status in ("", "\udcff", "\x1b[31m", "a\u202eb")]
    + [
        [("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "59")],
        [("x-ratelimit-limit-", "60")],
        [("x-ratelimit-limit-" + "a" * 65, "60")],
        [("x-ratelimit-limit-\x1b[31m", "60")],
        [("x-quota-snapshot-chat", "&".join("ent=1" for _ in range(1000)))],
        [("x-quota-snapshot-chat", "a&" * 100)],
        [("x-quota-snapshot-chat", "<script>")],
        [("x-codex-primary-used-percent", "0"), ("x-codex-primary-window-minutes", "0")],
    ],
)
def test_what_is_no_limit_is_left_out(headers: Headers) -> None:
    assert read(*headers) == {}


def test_a_limit_of_zero_has_no_share() -> None:
    found = read(("x-ratelimit-limit-tokens", "0"), ("x-ratelimit-remaining-tokens", "0"))
    assert found["tokens"].used_ratio is None


def test_windows_are_bounded() -> None:
    headers = [(f"x-ratelimit-limit-w{number}", "1") for number in range(100)]
    assert len(limits_in_headers(headers, NOON)) == MAX_WINDOWS


NAMES = st.sampled_from([name for name, _ in SUBSCRIPTION]) | st.from_regex(
    r"(anthropic-ratelimit|x-ratelimit|x-codex|x-quota-snapshot|x-usage-ratelimit)-[a-z0-9_-]{0,40}", fullmatch=True
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
WINDOW = st.dictionaries(
    st.sampled_from(["used_percent", "window_minutes", "reset_at", "reset_after_seconds"]), JSON, max_size=4
)
EVENT = st.fixed_dictionaries(
    {
        "plan_type": JSON,
        "metered_limit_name": JSON,
        "rate_limits": st.dictionaries(st.sampled_from(["primary", "secondary"]), WINDOW | JSON),
    }
)


def check(windows: Any) -> None:
    for window in windows:
        assert 0 < len(window.name) <= 80
        for number in (window.used_ratio, window.limit, window.remaining):
            assert number is None or abs(number) <= 1e18
        assert window.used_ratio is None or 0 <= window.used_ratio <= MAX_RATIO


@given(st.lists(st.tuples(NAMES, st.text(max_size=40) | st.from_regex(r"[0-9.e:TZ&=%-]{0,30}", fullmatch=True))))
def test_no_header_raises_or_leaves_the_bounds(headers: Headers) -> None:
    check(limits_in_headers(headers, NOON))


@given(EVENT | JSON)
def test_no_event_raises_or_leaves_the_bounds(event: Any) -> None:
    check(limits_in_event(event, NOON))
