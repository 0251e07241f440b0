"""Workers are started again with growing pauses, reloaded one by one, and stopped together."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from aibridge_addon.proxy.workers.supervisor import Supervisor, Worker, backoff

READY = """
import json, signal, socket, sys
control = socket.socket(fileno=int(sys.argv[1]))
signals = {signal.SIGTERM, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
def say(**message):
    control.sendall(json.dumps(message).encode() + b"\\n")
say(ready=True, metrics=None)
while signal.sigwait(signals) is signal.SIGHUP:
    open(sys.argv[2], "a").write(sys.argv[3])
    say(reloaded=sys.argv[3] not in sys.argv[4], metrics=None)
"""
"""A program that behaves like a worker. Arguments: the control, a file of reloads, its number, whose reloads fail."""
ENDS = "import sys; sys.exit(3)"


class Programs:
    def __init__(self, folder: Path) -> None:
        self.reloads = folder / "reloads"
        self.failing = ""
        self.started: list[int] = []
        self.fail_first = 0
        """How many processes end at once."""

    def command(self, worker: Worker, control: int) -> Sequence[str]:
        self.started.append(worker.number)
        ends = len(self.started) > 1 and len(self.started) - 1 <= self.fail_first
        program = ENDS if ends else READY
        return [sys.executable, "-c", program, str(control), str(self.reloads), str(worker.number), self.failing]


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def supervisor(programs: Programs, workers: int = 3, pauses: list[int] | None = None) -> Supervisor:
    def pause(failures: int) -> float:
        if pauses is not None:
            pauses.append(failures)
        return 0.0

    return Supervisor(programs.command, workers, stopped_within=lambda: 60.0, backoff=pause)


async def until_ready(made: Supervisor) -> None:
    while not all(worker.is_ready for worker in made.workers):  # noqa: ASYNC110 (processes say so)
        await asyncio.sleep(0.01)


async def stopped(made: Supervisor, running: asyncio.Task[int]) -> int:
    made.stop()
    return await running


async def test_it_ends_with_all_workers(programs: Programs) -> None:
    made = supervisor(programs)
    running = asyncio.create_task(made.run())
    await until_ready(made)
    assert await stopped(made, running) == 0
    assert programs.started[0] == 1
    assert sorted(programs.started) == [1, 2, 3]


async def test_a_first_worker_that_cannot_start_is_the_end(programs: Programs) -> None:
    made = Supervisor(lambda *_: [sys.executable, "-c", ENDS], 3, stopped_within=lambda: 60.0)
    assert await made.run() == 1


async def test_a_worker_that_ends_again_and_again_is_started_after_longer_pauses(programs: Programs) -> None:
    programs.fail_first, pauses = 4, list[int]()
    made = supervisor(programs, workers=2, pauses=pauses)
    running = asyncio.create_task(made.run())
    await until_ready(made)
    assert pauses == [1, 2, 3, 4]
    assert made.workers[1].restarts == 4
    assert await stopped(made, running) == 0
    assert [backoff(failures) for failures in (1, 2, 3, 7, 100)] == [1.0, 2.0, 4.0, 60.0, 60.0]


@pytest.mark.parametrize(("failing", "asked"), [("", "123"), ("1", "1"), ("2", "12")])
async def test_a_reload_goes_no_further_than_the_first_failure(programs: Programs, failing: str, asked: str) -> None:
    programs.failing = failing
    made = supervisor(programs)
    running = asyncio.create_task(made.run())
    await until_ready(made)
    made.reload()
    while made.reloads_now:  # noqa: ASYNC110 (processes say so)
        await asyncio.sleep(0.01)
    assert programs.reloads.read_text() == asked
    assert await stopped(made, running) == 0


async def test_a_worker_that_does_not_end_is_killed(programs: Programs) -> None:
    deaf = READY.replace("signals = {signal.SIGTERM, signal.SIGHUP}", "signals = {signal.SIGHUP}").replace(
        "SIG_BLOCK, signals", "SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP}"
    )
    made = Supervisor(
        lambda worker, control: [sys.executable, "-c", deaf, *programs.command(worker, control)[3:]],
        1,
        stopped_within=lambda: 0.0,
    )
    running = asyncio.create_task(made.run())
    await until_ready(made)
    assert await stopped(made, running) == 1
