"""`make` builds `.venv` whole or not at all. A stand-in for Python takes the place of the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Called as `python -m venv .venv`, it makes a copy of itself; called there as `python -m pip install …`, it does as
# the file `pip` says.
PYTHON = """#!/bin/sh
echo "$2" >> log
case "$2" in
  venv) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  pip) exit "$(cat pip)" ;;
esac
"""


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.python = folder / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)

    def make(self, *, pip: int) -> tuple[bool, list[str]]:
        """Build, pip ending with this code. Returns whether that succeeded, and what Python was called for."""
        (self.folder / "pip").write_text(str(pip))
        log = self.folder / "log"
        log.write_text("")
        command = ["make", ".venv", f"PYTHON={self.python}"]
        ended = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=30)
        return ended.returncode == 0, log.read_text().split()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_finished_build_is_not_built_again(project: Project) -> None:
    assert project.make(pip=0) == (True, ["venv", "pip"])
    assert project.make(pip=0) == (True, [])


def test_an_interrupted_build_is_not_taken_for_a_finished_one(project: Project) -> None:
    assert project.make(pip=1) == (False, ["venv", "pip"])
    assert (project.folder / ".venv" / "bin" / "python").exists()
    assert project.make(pip=0) == (True, ["venv", "pip"])
    assert project.make(pip=0) == (True, [])


def test_other_requirements_build_it_anew(project: Project) -> None:
    project.make(pip=0)
    built = (project.folder / ".venv" / ".built").stat().st_mtime_ns
    later = built + 1_000_000_000
    os.utime(project.folder / "constraints.txt", ns=(later, later))
    assert project.make(pip=0) == (True, ["venv", "pip"])
