"""`make` builds `.venv` whole or not at all. A stand-in for Python takes the place of the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Called as `python -m venv .venv`, it makes a copy of itself; called there as `python -m pip install …`, it does as
# the file `pip` says. Asked for its version, it is new enough.
PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 0
echo "$2" >> log
case "$2" in
  venv) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  pip) for asked in "$@"; do :; done; echo "$asked" >> log; exit "$(cat pip)" ;;
esac
"""
TO_RUN, TO_TEST = ".[bedrock,otel,postgres]", ".[dev,bedrock,otel,postgres]"


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.python = folder / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)

    def make(self, target: str = ".venv", *, pip: int) -> tuple[bool, list[str]]:
        """Build, pip ending with this code. Returns whether that succeeded, and what Python was called for."""
        (self.folder / "pip").write_text(str(pip))
        log = self.folder / "log"
        log.write_text("")
        command = ["make", target, f"PYTHON={self.python}"]
        ended = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=30)
        return ended.returncode == 0, log.read_text().split()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_finished_build_is_not_built_again(project: Project) -> None:
    assert project.make(pip=0) == (True, ["venv", "pip", TO_RUN])
    assert project.make(pip=0) == (True, [])


def test_an_interrupted_build_is_not_taken_for_a_finished_one(project: Project) -> None:
    assert project.make(pip=1) == (False, ["venv", "pip", TO_RUN])
    assert (project.folder / ".venv" / "bin" / "python").exists()
    assert project.make(pip=0) == (True, ["venv", "pip", TO_RUN])
    assert project.make(pip=0) == (True, [])


def test_other_requirements_build_it_anew(project: Project) -> None:
    project.make(pip=0)
    built = (project.folder / ".venv" / ".built").stat().st_mtime_ns
    later = built + 1_000_000_000
    os.utime(project.folder / "constraints.txt", ns=(later, later))
    assert project.make(pip=0) == (True, ["venv", "pip", TO_RUN])


def test_what_only_tests_need_is_added_when_they_run(project: Project) -> None:
    assert project.make(".venv/.development", pip=0) == (True, ["venv", "pip", TO_RUN, "pip", TO_TEST])
    assert project.make(".venv/.development", pip=0) == (True, [])
    assert project.make(pip=0) == (True, [])


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_a_python_that_is_missing_or_too_old_is_a_word_what_to_do(project: Project, python: str) -> None:
    command = ["make", ".venv", f"PYTHON={python}"]
    ended = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert f"Python 3.13 or newer is needed; {python} is missing or older." in ended.stderr
    assert "make PYTHON=/path/to/python3.13" in ended.stderr
    assert not (project.folder / ".venv").exists()
