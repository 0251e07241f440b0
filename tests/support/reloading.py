"""Reload the addon of a running mitmdump, as saving its main file does, or its configuration by a signal."""

import os
import re
import shutil
from pathlib import Path

from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.running import ADDON

LONG = 30.0


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
    before = configurations(proxy)
    poll_until(lambda: len(loaded.findall(proxy.log)) > times, LONG, what=f"load {times + 1} of the script")
    poll_until(lambda: configurations(proxy) > before, LONG, what="the next configuration")


def hang_up(proxy: Mitmdump) -> None:
    """Send SIGHUP, and wait until the configuration was read."""
    before = configurations(proxy)
    proxy.hang_up()
    poll_until(lambda: configurations(proxy) > before, LONG, what="the next configuration")


def configurations(proxy: Mitmdump) -> int:
    """Return how many configurations the log reports, used or refused."""
    return len(
        re.findall(r"aibridge: (?:configuration \S+, \d+ providers|the configuration is not reloaded)", proxy.log)
    )
