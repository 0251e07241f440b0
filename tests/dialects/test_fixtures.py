"""Every fixture, read as a stream and as one body, gives exactly the rows that it says; however it is cut up."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.support import fixtures
from tests.support.fixtures import Case
from tests.support.reading import rows_of

CASES = [*fixtures.cases(), *fixtures.invoke_cases()]


def sizes_whole(data: bytes) -> list[bytes]:
    return [data]


def sizes_single(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize("cut", [sizes_whole, sizes_single], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fixture_is_recorded_as_it_says(case: Case, cut: Any) -> None:
    assert rows_of(case, cut(case.body)) == case.expected


@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunking_never_changes_what_is_recorded(case: Case) -> None:
    for seed in range(25):
        generator = random.Random(seed)
        cuts = sorted(generator.randrange(len(case.body) + 1) for _ in range(generator.randrange(1, 30)))
        chunks = [case.body[a:b] for a, b in zip([0, *cuts], [*cuts, len(case.body)], strict=True)]
        assert rows_of(case, chunks) == case.expected, f"seed {seed}"
