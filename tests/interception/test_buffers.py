"""One budget of bytes for all requests and answers."""

from __future__ import annotations

from aibridge_addon.interception.buffers import Buffers
from aibridge_addon.records.memory import Memory


def test_shares_use_one_budget() -> None:
    buffers = Buffers(Memory(100))
    first, second = buffers.share(), buffers.share()
    assert first.add(60) and second.add(40) and buffers.used == 100
    assert not second.add(1)
    assert (second.size, buffers.used) == (40, 100)
    first.give_back(10)
    assert second.add(10)


def test_more_than_was_added_is_not_given_back() -> None:
    buffers = Buffers(Memory(100))
    share = buffers.share()
    assert share.add(10)
    share.give_back(30)
    assert (share.size, buffers.used) == (0, 0)


def test_a_share_that_has_ended_does_not_grow() -> None:
    buffers = Buffers(Memory(100))
    share, left = buffers.share(), []
    end = share.ending(lambda: left.append("left"))
    assert share.add(10)
    end()
    end()
    assert (buffers.used, share.add(1), left) == (0, False, ["left", "left"])
