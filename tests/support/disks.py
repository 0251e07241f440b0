"""A small file system of its own, which a test can fill, free, freeze, and make read-only."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SIZE = "4m"
IMAGE_BYTES = 16 * 2**20
MISSING = "a file system cannot be mounted: the test needs to run as root, with CAP_SYS_ADMIN"


class Disk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    @contextmanager
    def full(self) -> Iterator[None]:
        """Take all space that is left, and give it back."""
        self.fill()
        try:
            yield
        finally:
            self._ballast.unlink()

    def fill(self) -> None:
        """Take all space that is left, down to the last byte."""
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (2**16, 2**12, 1):
                try:
                    while True:
                        ballast.write(b"\0" * size)
                except OSError as e:
                    if e.errno != errno.ENOSPC:
                        raise

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Refuse every change of the file system. No file may be open for writing on it."""
        _run("mount", "-o", "remount,ro", str(self.folder))
        try:
            yield
        finally:
            _run("mount", "-o", "remount,rw", str(self.folder))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let every change of the file system wait, as a disk does that has stalled. It has to be an image."""
        _run("fsfreeze", "--freeze", str(self.folder))
        try:
            yield
        finally:
            _run("fsfreeze", "--unfreeze", str(self.folder))


@contextmanager
def mounted(folder: Path, *, image: Path | None = None) -> Iterator[Disk]:
    """Mount a file system, or skip the test where that is not permitted. `image`: in a new file, not in memory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if image is not None:
        command = ["mount", "-o", "loop", str(image), str(folder)]
    if os.geteuid() != 0 or (image is not None and not _made(image)) or not _runs(*command):
        pytest.skip(MISSING)
    try:
        yield Disk(folder)
    finally:
        _run("umount", "--lazy", str(folder))


def _made(image: Path) -> bool:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    return _runs("mkfs.ext4", "-q", str(image))


def _runs(*command: str) -> bool:
    with suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True).returncode == 0
    return False


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
