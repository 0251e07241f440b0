"""Hosts in network namespaces of their own, which reach this machine at one address. It needs root and Linux."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from types import TracebackType
from typing import Self

OF_TESTS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""The number of this process among those that run tests side by side."""
NETWORK = f"10.{200 + OF_TESTS % 50}.{{number}}"
"""Of the link to one host; its own end is .2, ours .1."""


def can_make_hosts() -> bool:
    """Whether namespaces can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"aib-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made.returncode == 0


class Host:
    """One host with a link to this machine."""

    def __init__(self, number: int) -> None:
        """`number`: from 1 to 250; no two hosts may have the same one."""
        self.name = f"aib-{os.getpid()}-{number}"
        self.address = f"{NETWORK.format(number=number)}.2"
        self.gateway = f"{NETWORK.format(number=number)}.1"
        self._link = f"aib{os.getpid() % 100_000}v{number}"

    def __enter__(self) -> Self:
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            _ip("address", "add", f"{self.gateway}/24", "dev", self._link)
            _ip("link", "set", self._link, "up")
            for words in (("address", "add", f"{self.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
                _ip("-n", self.name, *words)
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.delete()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.crash()
        self.delete()

    @property
    def prefix(self) -> list[str]:
        """What stands before a command that runs on this host."""
        return ["ip", "netns", "exec", self.name]

    def crash(self) -> None:
        """The power fails: the link is dead, and no process says good-bye."""
        with suppress(subprocess.CalledProcessError):
            _ip("link", "set", self._link, "down")
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def delete(self) -> None:
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "delete", self.name)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "delete", self._link)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
