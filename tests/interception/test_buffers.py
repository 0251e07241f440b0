"""One budget of bytes for all requests and answers."""

from __future__ import annotations

from aibridge_addon.interception.buffers import Buffers
from aibridge_addon.records.memory import RESERVED, Memory


def buffers_of(limit: int) -> Buffers:
    """Return buffers that may have so many bytes, besides the reserve for records."""
    return Buffers(Memory(limit + limit // (RESERVED - 1)))


def test_requests_and_records_use_one_budget_of_which_some_is_for_records() -> None:
    memory = Memory(800)
    before, after, records = Buffers(memory).share(), Buffers(memory).share(), memory.part(of_records=True)
    assert before.add(300) and records.add(300) and not after.add(101)
    assert after.add(100) and memory.used == 700
    assert records.add(100) and not records.add(1)
    records.give_back(400)  # all of them
    assert after.add(300) and not after.add(1)
    memory.limit = 80
    assert not records.add(1) and not before.add(1)


def test_a_part_that_is_not_used_any_more_does_not_count() -> None:
    memory = Memory(100)
    part = memory.part()
    assert part.add(50) and memory.used == 50
    del part
    assert memory.used == 0


def test_shares_use_one_budget() -> None:
    buffers = buffers_of(100)
    first, second = buffers.share(), buffers.share()
    assert first.add(60) and second.add(40) and buffers.used == 100
    assert not second.add(1)
    assert (second.size, buffers.used) == (40, 100)
    first.give_back(10)
    assert second.add(10)


def test_more_than_was_added_is_not_given_back() -> None:
    buffers = buffers_of(100)
    share = buffers.share()
    assert share.add(10)
    share.give_back(30)
    assert (share.size, buffers.used) == (0, 0)


def test_a_share_that_has_ended_does_not_grow() -> None:
    buffers = buffers_of(100)
    share, left = buffers.share(), []
    end = share.ending(lambda: left.append("left"))
    assert share.add(10)
    end()
    end()
    assert (buffers.used, share.add(1), left) == (0, False, ["left", "left"])
