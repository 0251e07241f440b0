"""`traceparent`, by the cases of the W3C specification."""

from __future__ import annotations

import pytest

from aibridge_addon.wire.trace_context import MAX_TRACESTATE, TraceContext, parse, span_id_for, trace_id_for

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"


def test_a_traceparent_is_read_and_written_unchanged() -> None:
    context = parse(VALID, "a=1,b=2")
    assert context == TraceContext(int(TRACE, 16), int(SPAN, 16), True, "a=1,b=2")
    assert context.traceparent == VALID


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True)])
def test_only_the_lowest_flag_says_whether_a_trace_is_sampled(flags: str, sampled: bool) -> None:
    context = parse(f"00-{TRACE}-{SPAN}-{flags}", None)
    assert context is not None and context.sampled is sampled


def test_a_later_version_may_have_further_fields() -> None:
    assert parse(f"01-{TRACE}-{SPAN}-01-more", None) is not None


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        VALID + "\n" + VALID,
        f"01-{TRACE}-{SPAN}-01-" + "x" * 1_000_000,
    ],
)
def test_an_invalid_traceparent_is_none(header: str | None) -> None:
    assert parse(header, "a=1") is None


def test_a_tracestate_that_is_too_long_is_left_out() -> None:
    context = parse(VALID, "a=" + "1" * MAX_TRACESTATE)
    assert context is not None and context.state == ""


def test_derived_ids_are_stable_different_and_valid() -> None:
    ids = {span_id_for("one"), span_id_for("one", 1), span_id_for("one", 1, "call", 0), span_id_for("two")}
    assert len(ids) == 4 and all(0 < id < 2**64 for id in ids)
    assert trace_id_for("one") == trace_id_for("one") != trace_id_for("two")
    assert TraceContext(trace_id_for("one"), span_id_for("one"), False).traceparent.endswith("-00")


def test_ids_of_traces_are_evenly_spread_as_samplers_by_ratio_need() -> None:
    low = [trace_id_for(f"00000000-0000-7000-8000-{number:012x}") % 2**64 for number in range(2000)]
    assert 850 < sum(value < 2**63 for value in low) < 1150
