"""Start and stop a proxy for one program, as a process of its own (`aibridge_addon.private`)."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from aibridge_addon.config.stop import AFTER_DRAIN
from aibridge_addon.wire.printable import printable

START_TIMEOUT = 60.0
"""Seconds. A proxy that is not ready by then is ended."""
SLOW_START = 3.0
"""Seconds after which a user wants to know what is waited for."""
LOG_LINES = 30
"""Lines of the log that an error shows."""


def add_set_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="an option of mitmproxy; may be repeated"
    )


class StartFailed(Exception):
    """The proxy has ended before it was ready. The text is the end of its log."""


@dataclass(frozen=True, slots=True)
class Ready:
    port: int
    ca: Path
    """The file of the certificate authority that clients must trust."""
    instance_id: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class PrivateProxy:
    """A context manager. The process ends when this one does, however that happens."""

    def __init__(self, log: Path | None = None) -> None:
        """Start the process, which imports its modules until it gets its options.

        `log`: where its log is kept. None: it is deleted at the end. Raises OSError: the log cannot be written.
        """
        self._log = open(log, "w+b") if log is not None else tempfile.TemporaryFile("w+b")  # noqa: SIM115
        # -P: a module in the working directory must not stand in for an installed one. A session of its own: Ctrl-C in
        # the terminal is for the program, whose last requests still need the proxy.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "aibridge_addon.private"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._log.close()

    def listen(
        self, options: Sequence[str], on_slow: Callable[[], None] | None = None, slow_after: float = SLOW_START
    ) -> Ready:
        """Wait until the proxy accepts connections. Raises StartFailed.

        Args:
            options: mitmproxy's options, each as `name=value`.
            on_slow: Called on another thread if the proxy is not ready after `slow_after` seconds.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(list(options)).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, for the reason that is in its log
        timers = [threading.Timer(START_TIMEOUT, self._process.kill)]
        if on_slow is not None:
            timers.append(threading.Timer(slow_after, on_slow))
        for timer in timers:
            timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            for timer in timers:
                timer.cancel()
        if not line:
            self._process.wait()
            raise StartFailed(self.log_tail or f"no output, exit code {self._process.returncode}")
        found = json.loads(line)
        return Ready(found["port"], Path(found["ca"]), found["instance_id"])

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def log_tail(self) -> str:
        """The last lines of the log, safe to print."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return printable("\n".join(lines[-LOG_LINES:]))

    def stop(self, drain_timeout: float) -> bool:
        """End after the answers under way. Returns whether all went well."""
        assert self._process.stdin is not None
        was_running = self.runs
        self._process.stdin.close()
        try:
            return self._process.wait(drain_timeout + AFTER_DRAIN) == 0 and was_running
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def kill(self) -> None:
        """End at once. May be called from a signal handler, and more than once."""
        if self.runs:
            self._process.kill()
        self._process.wait()
