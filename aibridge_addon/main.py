"""The script for `mitmdump -s aibridge_addon/main.py`.

mitmproxy runs this file with its folder first on `sys.path`. Our modules would shadow installed modules there. So this
file replaces the folder by its parent and imports the package. No module imports this file.
"""

import sys
from pathlib import Path

_package = Path(__file__).resolve().parent
if str(_package) in map(str, (Path(entry).resolve() for entry in sys.path[:1])):
    sys.path[0] = str(_package.parent)

from aibridge_addon.addon import AIBridge  # noqa: E402 (the path has to be right first)

addons = [AIBridge()]
