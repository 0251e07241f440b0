"""The life of a configuration's parts: started in one order, ended in the reverse one, whatever happens."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aibridge_addon.bridge import SIDE_TIMEOUT, SINKS, Bridge, MakeSink
from aibridge_addon.config.errors import ConfigError
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.stop import AFTER_DRAIN
from aibridge_addon.proxy.drain import WRITE_TIMEOUT
from aibridge_addon.recording.sqlite.reader import LOCK_TIMEOUT
from aibridge_addon.records import Sink
from aibridge_addon.records.memory import Memory
from aibridge_addon.telemetry.prometheus.listener import STOP_TIMEOUT
from aibridge_addon.tools.transports import GRACE
from tests.support.database import read_table
from tests.support.examples import ENDED, ID, STARTED, interceptions
from tests.support.upstream import unused_port


class Unstartable(Sink):
    def start(self, before: Sink | None = None) -> None:
        raise ValueError("no such place")


def make(tmp_path: Path, sinks: Sequence[MakeSink] = SINKS, **config: Any) -> Bridge:
    database = f"sqlite:///{tmp_path / 'aibridge.db'}"
    return Bridge(Settings.model_validate({"database": database, "metrics": {"listen": None}, **config}), sinks)


async def ended(bridge: Bridge) -> None:
    async with asyncio.timeout(30):
        while not bridge.ended:  # noqa: ASYNC110 (threads do not say when they have ended)
            await asyncio.sleep(0)


async def test_a_start_that_fails_frees_what_was_started_before(tmp_path: Path) -> None:
    port = unused_port()
    metrics = {"listen": f"127.0.0.1:{port}"}
    with pytest.raises(ValueError, match="no such place"):
        make(tmp_path, (*SINKS, lambda _settings, _whole: Unstartable()), metrics=metrics).start()
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_a_part_that_cannot_start_ends_the_sinks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bridge = make(tmp_path, dump_dir=str(tmp_path / "file" / "dumps"))
    with pytest.raises(ConfigError, match="dump_dir"):
        bridge.start()
    assert not await bridge.committed()


async def test_a_request_that_began_before_a_retirement_is_recorded_to_its_end(tmp_path: Path) -> None:
    bridge = make(tmp_path)
    bridge.start()
    left = bridge.in_flight.enter(lambda: None, str)
    bridge.emit(STARTED)
    bridge.retire()
    assert not bridge.ended
    bridge.emit(ENDED)
    left()
    await ended(bridge)
    assert interceptions(tmp_path / "aibridge.db")[ID]["status"] == "failed"
    assert bridge.stream.lost == 0


async def test_what_is_emitted_after_a_retired_bridge_has_ended_is_lost_and_counted(tmp_path: Path) -> None:
    bridge = make(tmp_path)
    bridge.start()
    bridge.retire()
    await ended(bridge)
    bridge.emit(STARTED)
    assert bridge.stream.lost == 1
    assert read_table(tmp_path / "aibridge.db", "aibridge_interceptions") == []


async def test_a_bridge_is_ready_while_the_ports_are_open_and_no_stop_has_begun(tmp_path: Path) -> None:
    bridge = make(tmp_path)
    bridge.start()
    states = [bridge._readiness().ready]
    bridge.listening = True
    states.append(bridge._readiness().ready)
    bridge.draining = True
    states.append(bridge._readiness().ready)
    assert states == [False, True, False]
    await bridge.close(10)


async def test_a_bridge_may_be_closed_twice(tmp_path: Path) -> None:
    bridge = make(tmp_path)
    bridge.start()
    bridge.emit(STARTED)
    await bridge.close(10)
    bridge.close_now(10)
    assert (len(interceptions(tmp_path / "aibridge.db")), bridge.stream.lost) == (1, 0)


async def test_a_stop_does_not_wait_twice_for_a_part_that_does_not_end(tmp_path: Path) -> None:
    waited: list[float | None] = []

    class Stuck(Sink):
        def close(self, timeout: float | None) -> None:
            if timeout is not None:
                waited.append(timeout)

    bridge = make(tmp_path, (*SINKS, lambda _settings, _whole: Stuck()))
    bridge.start()
    await bridge.close(10)
    bridge.close_now(10)
    assert len(waited) == 1


async def test_requests_and_records_of_all_bridges_are_within_one_budget(tmp_path: Path) -> None:
    memory = Memory(10_000)
    before, after = make(tmp_path), make(tmp_path)
    for bridge in (before, after):
        bridge.count_in(memory)
    share = before.buffers.share()
    assert share.add(5_000) and not after.buffers.share().add(5_000)
    [database] = [sink for sink in before._sinks if sink.durable]
    database.emit([STARTED])
    waiting = memory.used - 5_000
    assert waiting > 0
    after.emit(STARTED)
    assert memory.used - 5_000 > waiting
    share.end()
    for bridge in (before, after):
        bridge.close_now(0)


def test_the_documented_time_of_a_stop_is_enough_for_its_worst_case() -> None:
    servers = 3 * GRACE + GRACE
    sides = 3 * SIDE_TIMEOUT  # dumps, budgets, the pruner
    connections = 3 * LOCK_TIMEOUT  # of continuations, tokens and the ledger
    rows = WRITE_TIMEOUT + 1 + STOP_TIMEOUT  # the recorder gives up after one more second; metrics end last
    assert servers + sides + connections + rows <= AFTER_DRAIN
