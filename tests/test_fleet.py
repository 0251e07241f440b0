"""The model of a fleet, and how results get into the documentation."""

import dataclasses
import itertools
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import docs, results
from benchmarks.conversation import conversation
from benchmarks.fleet_model import ASSUMED, FLEETS, Costs, predict
from benchmarks.report import Result
from benchmarks.results import Machine, Measured

COSTS = Costs(
    request_us=[(10_000.0, 2_000.0), (100_000.0, 3_000.0), (2_000_000.0, 22_000.0)],
    chunk_us=50.0,
    one_by_one=1.3,
    connection_us=7_000.0,
    worker_mb=120.0,
    stream_kb=40.0,
    idle_kb=30.0,
    rows=4.0,
    sqlite_bytes=5_000.0,
    postgres_bytes=6_000.0,
    postgres_us=1_000.0,
    postgres_connections=3.0,
)
MACHINE = Machine("a processor", 2, 8.0, "Linux", "3.13.0", "12.3.1")
FULL = Measured("2026-01-01T00:00:00Z", False, MACHINE, 0.1, [Result("CPU per chunk", "µs", 50.0, 70.0, 0.71, 0.75)])


@pytest.mark.parametrize(
    ("size", "microseconds"), [(10_000, 2_000), (55_000, 2_500), (100_000, 3_000), (1_050_000, 12_500)]
)
def test_a_requests_cost_is_on_the_line_between_measured_sizes(size: float, microseconds: float) -> None:
    assert COSTS.of_request(size) == pytest.approx(microseconds)


def test_a_larger_fleet_needs_more_of_everything() -> None:
    numbers = [dataclasses.astuple(predict(developers, COSTS))[:-1] for developers in FLEETS]
    assert all(all(b >= a for a, b in zip(less, more, strict=True)) for less, more in itertools.pairwise(numbers))


def test_what_is_used_most_is_named_with_its_share() -> None:
    greedy = dataclasses.replace(COSTS, postgres_us=1e6)
    assert predict(100_000, greedy).first_to_saturate.startswith("CPU of PostgreSQL (")


def test_the_requests_of_a_session_grow_to_the_assumed_mean() -> None:
    sizes = list(itertools.islice(ASSUMED.sizes(0), ASSUMED.requests_per_session))
    assert sizes == sorted(sizes) and sizes[0] == ASSUMED.first_request_bytes
    assert sum(sizes) / len(sizes) == pytest.approx(ASSUMED.request_bytes, rel=0.01)


def test_answers_of_a_session_have_as_many_calls_as_assumed_and_results_name_them() -> None:
    asked = list(itertools.islice(conversation(ASSUMED, 0), 130))
    calls = [b"tool_use" in each.answer.body for each in asked]
    assert sum(calls) / calls.count(False) == pytest.approx(ASSUMED.tool_calls_per_prompt, rel=0.1)
    assert all(len(each.answer.packets) == ASSUMED.events_per_answer for each in asked)
    for before, after in itertools.pairwise(asked):
        id = before.answer.body.partition(b'"id":"toolu_')[2][:24]
        assert id in after.request_parts[1] if id else True


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for page in docs.PAGES:
        shutil.copy(docs.ROOT / "docs" / page, tmp_path)
    return tmp_path


def test_stored_results_are_read_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.store(path, "loss", FULL)
    results.store(path, "chunks", FULL)
    assert results.read(path) == {"loss": FULL, "chunks": FULL}


def test_pages_show_a_full_run_and_which_machine_it_was(pages: Path) -> None:
    docs.write({"chunks": FULL}, pages)
    assert "a processor" in (pages / "performance.md").read_text()
    assert "images/bench-ratios.svg" in (pages / "performance.md").read_text()
    ElementTree.parse(pages / "images" / "bench-ratios.svg")


def test_pages_show_no_quick_run(pages: Path) -> None:
    docs.write({"chunks": dataclasses.replace(FULL, quick=True)}, pages)
    assert "a processor" not in (pages / "performance.md").read_text()
    assert not list((pages / "images").iterdir())


def test_pages_are_as_stored_results_make_them(pages: Path) -> None:
    docs.write(results.read(), pages)
    for page in docs.PAGES:
        assert (pages / page).read_text() == (docs.ROOT / "docs" / page).read_text()
