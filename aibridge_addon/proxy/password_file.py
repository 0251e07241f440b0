"""Check the password file of mitmproxy's `--proxyauth` before mitmproxy does.

mitmproxy reads the file before it loads the addon, and names no reason. So `aibridge serve` and `aibridge run` run this
check first. It takes mitmproxy's own arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mitmproxy.utils.htpasswd import HtpasswdFile

from aibridge_addon.wire.printable import printable

OPTION = "proxyauth"
STEP = "Make a file with bcrypt: htpasswd -B -c FILE USER"


def problem(arguments: Sequence[str]) -> str | None:
    """Return what is wrong with the password file that mitmproxy's arguments name, and what to do. None: nothing."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{OPTION}")
    parser.add_argument("--set", action="append", default=[])
    given, _ = parser.parse_known_args(list(arguments))
    values = [value for name, _, value in (each.partition("=") for each in given.set) if name == OPTION]
    values += [given.proxyauth] if given.proxyauth is not None else []  # as in mitmproxy, it wins over --set
    if not values or not values[-1].startswith("@"):
        return None
    path = Path(values[-1][1:]).expanduser()
    try:
        HtpasswdFile.from_file(path)
    except OSError as e:
        reason = "it does not exist" if not path.exists() else e.strerror or str(e)
        return f"--{OPTION}: the password file {path} cannot be read: {reason}. {STEP}"
    except UnicodeDecodeError:
        return f"--{OPTION}: the password file {path} is not UTF-8 text. {STEP}"
    except ValueError as e:
        reason = "a line is not USER:HASH" if "Malformed" in str(e) else f"{e}, only bcrypt ($2y$) and {{SHA}} are read"
        return f"--{OPTION}: the password file {path} cannot be used: {reason}. {STEP}"
    return None


def main(arguments: Sequence[str]) -> int:
    """Print the problem. Returns the exit code."""
    found = problem(arguments)
    if found is None:
        return 0
    sys.stderr.write(f"aibridge cannot start: {printable(found)}\n")
    return 1
