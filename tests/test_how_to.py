"""Each page in docs/how-to is followed word for word in a copy of the project, and its tests are run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
STEP = re.compile(r"^`([\w/.]+)`:\n\n```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A path with a colon, and a block of code: a new file, or lines that replace others in one that is there."""


def follow(page: Path, project: Path) -> list[str]:
    """Do the steps of a page. Returns the paths of its tests."""
    tests = []
    for path, kind, code in STEP.findall(page.read_text()):
        file = project / path
        if kind == "diff":
            replace_lines(file, code)
            continue
        assert not file.exists(), f"{path} is there already"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
        if path.startswith("tests/"):
            tests.append(path)
    return tests


def replace_lines(file: Path, diff: str) -> None:
    """Replace the lines that begin with a minus by those with a plus. They occur once."""
    lines = diff.splitlines(keepends=True)
    old, new = ("".join(line[1:] for line in lines if line[0] == sign).removesuffix("\n") for sign in "-+")
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} does not have once: {old}"
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_page_builds_works(page: Path, tmp_path: Path) -> None:
    for folder in ("aibridge_addon", "tests/support"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/integration/exchanges.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    tests = follow(page, tmp_path)
    assert tests
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", *tests],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_page_builds_is_in_the_projects_style(page: Path, tmp_path: Path) -> None:
    for number, (path, kind, code) in enumerate(STEP.findall(page.read_text())):
        if kind == "python":
            (tmp_path / f"{number}_{Path(path).name}").write_text(code)
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--config",
        str(ROOT / "pyproject.toml"),
        "--ignore",
        "S",
        str(tmp_path),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout
