"""Follow each how-to in a copy of the package, as a reader does: write its files, change its tables, run its tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
BLOCK = re.compile(r"^```(python|diff)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def follow(page: str, folder: Path) -> list[Path]:
    """Do what a page says in a folder. Return the tests that it has."""
    for language, name, text in BLOCK.findall(page):
        file = folder / name
        if language == "diff":
            changed(file, text)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return [folder / name for _, name, _ in BLOCK.findall(page) if name.startswith("tests/")]


def changed(file: Path, diff: str) -> None:
    """Apply a diff: each line that stays or is removed is in the file once, and the added lines are beside it."""
    for hunk in re.findall(r"((?:^\+.*\n)*^[ -].*\n(?:^\+.*\n)*)", diff, re.MULTILINE):
        lines = hunk.splitlines()
        [old] = [line[1:] for line in lines if not line.startswith("+")]
        new = [line[1:] for line in lines if not line.startswith("-")]
        text = file.read_text()
        assert text.count(old) == 1, f"{file.name} has no such line any more: {old}"
        file.write_text(text.replace(old, "\n".join(new)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_of_a_page_works(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "aibridge_addon", tmp_path / "aibridge_addon")
    tests = follow(page.read_text(), tmp_path)
    assert tests
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, *map(str, tests)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_of_a_page_is_in_the_projects_style(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "aibridge_addon", tmp_path / "aibridge_addon")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    follow(page.read_text(), tmp_path)
    written = [name for language, name, _ in BLOCK.findall(page.read_text()) if language == "python"]
    for command in (["check"], ["format", "--check"]):
        arguments = [str(Path(sys.executable).with_name("ruff")), *command, "--no-cache", *written]
        ended = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
