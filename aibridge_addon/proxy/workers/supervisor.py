"""The one owner of the workers' processes: start, restart, reload, stop.

    start ─▶ worker 1 ─ ready ─▶ the others ─▶ serving ─ SIGTERM ─▶ all workers drain ─▶ end
                 └─ ends ─▶ no start                └─ a worker ends ─▶ a pause ─▶ it is started again

The first worker starts alone: it makes the certificate authority and the tables that the others find, and a wrong
configuration is reported once. A reload asks one worker after the other, and goes no further where one keeps the old
configuration.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from aibridge_addon.proxy.connection import channel
from aibridge_addon.proxy.workers.ports import Ports

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0
"""Seconds before a worker that has ended is started again: 1, 2, 4 … up to this."""
STABLE_AFTER = 60.0
"""Seconds. A worker that served that long is started again after one second."""
READY_WITHIN = 120.0
"""Seconds from its start until a worker serves. One that takes longer is killed."""
RELOADED_WITHIN = 60.0
"""Seconds that a reload waits for one worker before it goes on with the next."""

Backoff = Callable[[int], float]


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row."""
    return min(LONGEST_PAUSE, 2.0 ** min(failures - 1, 6))


@dataclass(slots=True)
class Worker:
    """One place among the workers. Its process may change."""

    number: int
    process: asyncio.subprocess.Process | None = None
    is_ready: bool = False
    metrics: str | None = None
    """The address of its own endpoint for metrics. None: it has none."""
    restarts: int = 0
    failures: int = 0
    """Ends in a row that were soon after the start."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """It is ready, or has ended."""
    reloaded: asyncio.Future[bool] | None = None
    control: socket.socket | None = None
    lines: channel.Lines = field(default_factory=channel.Lines)


class Supervisor:
    """Used on one event loop."""

    def __init__(
        self,
        command: Callable[[Worker, int], Sequence[str]],
        workers: int,
        *,
        stopped_within: Callable[[], float],
        backoff: Backoff = backoff,
    ) -> None:
        """Create the owner of so many workers.

        Args:
            command: Returns what to execute for a worker, given the descriptor of its control.
            stopped_within: Returns the seconds after which a worker that was stopped is killed.
        """
        self.workers = tuple(Worker(number) for number in range(1, workers + 1))
        self.ports = Ports()
        self._command = command
        self._stopped_within = stopped_within
        self._backoff = backoff
        self._stopping = asyncio.Event()
        self._has_failed = False
        self._again = False
        self._reloading: asyncio.Task[None] | None = None

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def reloads_now(self) -> bool:
        return self._reloading is not None

    async def run(self) -> int:
        """Serve until a stop. Returns the exit code: 1 where the first worker cannot start, or one has failed at the
        end."""
        first, *others = self.workers
        tasks = [asyncio.create_task(self._keep(first))]
        await first.settled.wait()
        if first.is_ready:
            tasks += [asyncio.create_task(self._keep(worker)) for worker in others]
        else:
            self._has_failed = not self.is_stopping
            self.stop()
        await asyncio.gather(*tasks)
        self.ports.close()
        return int(self._has_failed)

    def stop(self) -> None:
        """Accept nothing more, and have the workers drain. The second call ends them at once."""
        if not self.is_stopping:
            self._stopping.set()
            self.ports.close()
            asyncio.get_running_loop().call_later(self._stopped_within(), self.kill)
        self._signal(signal.SIGTERM)

    def reload(self) -> None:
        """Have the workers read the configuration again, one by one, in the background."""
        if self.is_stopping:
            logger.warning("the configuration is not reloaded during a stop")
        elif self._reloading is None:
            self._reloading = asyncio.create_task(self._reload())
        else:
            self._again = True

    def kill(self) -> None:
        """End all processes at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for worker in self.workers:
            if worker.process is not None:
                with suppress(ProcessLookupError):
                    worker.process.send_signal(number)

    # --- a worker's life ----------------------------------------------------------------------------------------------

    async def _keep(self, worker: Worker) -> None:
        """Run a worker, and run it again when it ends, until the stop."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            code = await self._run(worker)
            if self.is_stopping:
                self._has_failed |= code != 0
                return
            if not worker.settled.is_set():  # it has never served
                worker.settled.set()
                if worker is self.workers[0]:
                    return
            worker.failures = 1 if loop.time() - began >= STABLE_AFTER else worker.failures + 1
            worker.restarts += 1
            pause = self._backoff(worker.failures)
            logger.error("worker %d has ended (%s), and is started again in %g s", worker.number, _how(code), pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return

    async def _run(self, worker: Worker) -> int:
        """Run a worker's process once. Returns its exit code."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            with theirs:
                process = worker.process = await asyncio.create_subprocess_exec(
                    *self._command(worker, theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for the supervisor, which has them drain once
                )
            worker.control, worker.lines = ours, channel.Lines()
            loop.add_reader(ours, self._said, worker)
            late = loop.call_later(READY_WITHIN, self._check_start, worker, process)
            try:
                if self.is_stopping:  # the stop came while the process was created
                    process.terminate()
                return await process.wait()
            finally:
                late.cancel()
                loop.remove_reader(ours)
                worker.process = worker.control = worker.metrics = None
                worker.is_ready = False
                self._settle_reload(worker, succeeded=False)

    def _check_start(self, worker: Worker, process: asyncio.subprocess.Process) -> None:
        if not worker.is_ready and process.returncode is None:
            logger.error("worker %d is not ready after %g s, and is killed", worker.number, READY_WITHIN)
            process.kill()

    def _said(self, worker: Worker) -> None:
        assert worker.control is not None
        try:
            data = worker.control.recv(channel.MAX_LINE)
            messages = worker.lines.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ValueError):
            data, messages = b"", []
        if not data:  # it ends, and its exit code comes
            asyncio.get_running_loop().remove_reader(worker.control)
        for message in messages:
            self._take(worker, message)

    def _take(self, worker: Worker, message: dict[str, object]) -> None:
        match message:
            case {"listen": [str(host), int(port)]} if worker.control is not None:
                if self.is_stopping:
                    return
                with suppress(OSError):
                    self.ports.answer(worker.number, worker.control, host, port)
            case {"ready": True}:
                worker.is_ready = True
                worker.settled.set()
                self._metrics_of(worker, message)
            case {"reloaded": bool(succeeded)}:
                self._metrics_of(worker, message)
                self._settle_reload(worker, succeeded=succeeded)

    def _metrics_of(self, worker: Worker, message: dict[str, object]) -> None:
        address = message.get("metrics")
        worker.metrics = address if isinstance(address, str) else None

    # --- reloads ------------------------------------------------------------------------------------------------------

    async def _reload(self) -> None:
        try:
            while True:
                self._again = False
                await self._reload_each()
                if not self._again:
                    return
        finally:
            self._reloading = None

    async def _reload_each(self) -> None:
        for done, worker in enumerate(self.workers):
            if worker.process is None or not worker.is_ready:
                continue  # it reads the new configuration when it starts
            worker.reloaded = asyncio.get_running_loop().create_future()
            with suppress(ProcessLookupError):  # its end settles the reload
                worker.process.send_signal(signal.SIGHUP)
            try:
                succeeded = await asyncio.wait_for(worker.reloaded, RELOADED_WITHIN)
            except TimeoutError:
                logger.error("worker %d has not reloaded the configuration in %g s", worker.number, RELOADED_WITHIN)
                continue
            if not succeeded and done == 0:
                logger.error("the configuration is not reloaded: all workers keep the old one")
                return
            if not succeeded:
                logger.error("worker %d has not reloaded the configuration, %d have", worker.number, done)
                return

    def _settle_reload(self, worker: Worker, *, succeeded: bool) -> None:
        if worker.reloaded is not None and not worker.reloaded.done():
            worker.reloaded.set_result(succeeded)


def worker_command(
    arguments: Sequence[str], *, uvloop: bool, metrics_at: Callable[[], str]
) -> Callable[[Worker, int], Sequence[str]]:
    """Return what executes a worker with these arguments of mitmdump. `metrics_at` is for their log."""

    def command(_: Worker, control: int) -> Sequence[str]:
        kind = "uvloop" if uvloop else "asyncio"
        # -P: a module in the working directory must not stand in for an installed one.
        worker = [sys.executable, "-P", "-m", "aibridge_addon.proxy.workers.worker"]
        return [*worker, str(control), kind, metrics_at(), *arguments]

    return command


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def cores() -> int:
    """Return how many cores this process may use."""
    return os.process_cpu_count() or 1
