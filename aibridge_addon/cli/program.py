"""The program of `aibridge run`: its environment, its signals and its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from aibridge_addon.cli import authority
from aibridge_addon.cli.environment import Route, bundle_files, past_the_proxy, variables
from aibridge_addon.cli.roots import bundle, write_trusted
from aibridge_addon.config.providers import Provider
from aibridge_addon.wire.printable import printable

NOT_EXECUTABLE = 126
NOT_FOUND = 127


def run(
    command: Sequence[str], proxy: str, ca: Path, folder: Path, providers: Sequence[Provider], signals: Signals
) -> int:
    """Run a program to its end. Returns its exit code, as a shell reports it.

    Args:
        proxy: The proxy's URL.
        ca: The file of its certificate authority.
        folder: For the bundle of trusted certificates.
    """
    file = folder / "ca-bundle.pem"
    route = Route(proxy, file)
    write_trusted(file, route.trust_store, bundle(ca, bundle_files(os.environ)))
    ours = variables(route, os.environ)
    for entry in past_the_proxy(ours["NO_PROXY"], providers):
        print(f"aibridge: NO_PROXY contains {printable(entry)}: requests to it go past the proxy", file=sys.stderr)
    if (missing := authority.missing(ca, providers)) is not None:
        print(f"aibridge: {printable(missing)}", file=sys.stderr)
    try:
        child = subprocess.Popen(list(command), env={**os.environ, **ours})  # noqa: S603 (what the user asks for)
    except OSError as e:
        print(f"aibridge run: {printable(command[0])}: {e.strerror}", file=sys.stderr)
        return NOT_FOUND if isinstance(e, FileNotFoundError) else NOT_EXECUTABLE
    signals.deliver_to(child)
    code = child.wait()
    signals.deliver_to(None)
    return 128 - code if code < 0 else code


class Signals:
    """Pass signals on to the program. Its end is ours, so that its last requests are still recorded.

    Ctrl-C in a terminal reaches the program by itself, and must not reach it twice. A signal that comes while there is
    no program, such as during the last part of the proxy's end, calls `otherwise`.
    """

    def __init__(self, otherwise: Callable[[], None] = lambda: None) -> None:
        self._otherwise = otherwise
        self._child: subprocess.Popen[bytes] | None = None
        self._before: list[tuple[int, Any]] = []
        self._early: int | None = None

    def __enter__(self) -> Self:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # What is ignored, as in a shell's background jobs or under nohup, stays ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before.append((number, signal.signal(number, self._pass_on)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def deliver_to(self, child: subprocess.Popen[bytes] | None) -> None:
        self._child = child
        if child is not None and self._early is not None:
            child.send_signal(self._early)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        if self._child is None:
            self._early = number
            self._otherwise()
        elif number != signal.SIGINT or not _from_terminal():
            self._child.send_signal(number)


def _from_terminal() -> bool:
    """Return whether Ctrl-C reaches our process group, and so the program, from a terminal."""
    try:
        with open("/dev/tty", "rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
