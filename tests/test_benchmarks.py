"""The benchmarks notice wrong answers: a proxy that is fast and wrong must not pass."""

import pytest

from benchmarks.stored_rows import COLUMNS, stored
from benchmarks.traffic import SMALL
from benchmarks.turns import one_turn, two_turns
from tests.integration.turns import DIALECTS


def test_an_answer_that_is_not_the_upstreams_is_wrong() -> None:
    assert SMALL.is_right(SMALL.answer.body)
    assert not SMALL.is_right(SMALL.answer.body + b" ")


@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_of_two_turns_is_right_if_it_is_one_message_without_a_call(dialect: str, streaming: bool) -> None:
    one, two = one_turn(dialect, streaming=streaming), two_turns(dialect, streaming=streaming)
    right = one.answer.body
    assert one.is_right(right)
    for wrong in (b"", b"{}", b"null", right[:-15], right.replace(b"Done. ", b"Gone. ", 1), right + b"bmcp_"):
        assert not one.is_right(wrong)
    assert not two.is_right(right)  # the second turn's answer, or the first's, is not that of both
    assert not two.is_right(two.answer.body)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_upstream_goes_on_when_the_calls_result_is_there(dialect: str) -> None:
    two = two_turns(dialect, streaming=True)
    first = two.answer_to(b"{}")
    second = two.answer_to(two.turns.call_ids(0)[0].encode())
    assert first == two.answer
    assert first != second and b"bmcp_" in first.body and b"bmcp_" not in second.body


def test_the_rows_of_the_database_benchmark_are_the_same_each_time() -> None:
    once, again = list(stored(300)), list(stored(300))
    assert once == again
    assert 3.3 < sum(map(len, once)) / len(once) < 3.8
    assert all(len(row) == len(COLUMNS[table]) for rows in once for table, row in rows)
