"""Reload the addon of a running mitmdump, as saving its main file does."""

import os
import re
import shutil
from pathlib import Path

from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.running import ADDON


def copy_package(folder: Path) -> Path:
    """Copy the package, so that its main file, which is returned, may be touched."""
    shutil.copytree(ADDON.parent, folder / ADDON.parent.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / ADDON.parent.name / ADDON.name


def reload(proxy: Mitmdump, script: Path, times: int) -> None:
    """Save the script, and wait until mitmproxy has loaded it as many times as it was saved, and once to begin with."""
    # mitmproxy compares modification times, and some file systems store whole seconds only.
    saved = script.stat().st_mtime + 2
    os.utime(script, (saved, saved))
    loaded = re.compile(re.escape(f"Loading script {script}"))
    poll_until(lambda: len(loaded.findall(proxy.log)) > times, what=f"load {times + 1} of the script")
