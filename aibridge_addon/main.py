"""What `mitmdump -s` loads: `mitmdump -s aibridge_addon/main.py`.

mitmproxy runs this file as a script, with its folder first on `sys.path`, where our modules would shadow installed
ones. So the folder is swapped for its parent, and the real package is imported from there. Nothing imports this file.
"""

import sys
from pathlib import Path

_package = Path(__file__).resolve().parent
if str(_package) in map(str, (Path(entry).resolve() for entry in sys.path[:1])):
    sys.path[0] = str(_package.parent)

from aibridge_addon.addon import AIBridge  # noqa: E402 (the path has to be right first)

addons = [AIBridge()]
