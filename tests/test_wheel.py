"""The wheel: what an installation has is what the repository has."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aibridge_addon"
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-c", BUILD, str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(folder / built.stdout.split()[-1])


def test_the_wheel_has_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if name.startswith("aibridge_addon/")}
    assert packed == wanted
    for file in ("web/templates/base.html", "web/static/style.css", "web/static/live.js", "web/static/icon.svg"):
        assert f"aibridge_addon/{file}" in packed


def test_the_wheel_has_the_command_and_nothing_of_the_tests(wheel: zipfile.ZipFile) -> None:
    [entries] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "aibridge = aibridge_addon.cli:main" in wheel.read(entries).decode()
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"aibridge_addon", "aibridge_mitmproxy"}
