"""mitmproxy's output on a terminal: which lines are shown, and how they are formatted.

`mitmdump` prints several lines for each connection and each flow, none of which names a model or a cost. They are
hidden, since every interception has one line of ours. `termlog_verbosity=debug` and `flow_detail` show them again.
"""

from __future__ import annotations

import logging
import os
from typing import Literal

from mitmproxy.addonmanager import AddonManager, traverse
from mitmproxy.addons.termlog import TermLogHandler
from mitmproxy.log import LegacyLogEvents
from mitmproxy.options import Options
from mitmproxy.optmanager import unset

from aibridge_addon.proxy.addon_manager import SparingAddonManager
from aibridge_addon.telemetry.log.formatters import JsonFormatter, TextFormatter

CONNECTIONS = "mitmproxy.proxy.server"
"""mitmproxy's logger of connections: opened, closed, failed."""
LISTENERS = "mitmproxy.proxy.mode_servers"
"""mitmproxy's logger of ports: opened, closed."""
FAILED_GREETING = "Client TLS handshake failed."
"""The beginning of mitmproxy's line that `proxy/connection/greetings.py` replaces."""
DETAIL = "flow_detail"
"""mitmdump's option of what it prints for each flow."""
MIN_WIDTH = 40
"""Columns. A narrower terminal wraps the lines."""


def hide_flows(options: Options) -> None:
    """Have `mitmdump` print nothing for each flow, unless its user chose a level. That may be mitmdump's default."""
    # An option that was set to its default differs from one that was not set only in this private attribute.
    if DETAIL in options and options._options[DETAIL].value is unset:
        options.update(flow_detail=0)


def spare_add_log(addons: AddonManager) -> None:
    """Leave out mitmproxy's hook `add_log` while no addon has it.

    mitmproxy asks all of its 40 addons about each line, on the event loop. This takes longer than to write the line.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LegacyLogEvents) and not any(isinstance(f, _WithAddLog) for f in handler.filters):
            handler.addFilter(_WithAddLog(addons))


def hide_listening() -> None:
    """Hide that mitmproxy listens: after a failed start, it does so until it exits a moment later."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, TermLogHandler):
            handler.addFilter(lambda record: record.name != LISTENERS or record.levelno > logging.INFO)


def use_format(format: Literal["text", "json"]) -> None:
    """Format the log on every terminal of mitmproxy. May be called again, also after a reload of the script."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, TermLogHandler):
            _apply(handler, format)


def _apply(handler: TermLogHandler, format: Literal["text", "json"]) -> None:
    used = handler.formatter or logging.Formatter()
    other = used.other if isinstance(used, TextFormatter | JsonFormatter) else used
    if format == "json":
        handler.formatter = JsonFormatter(other)
    else:
        handler.formatter = TextFormatter(other, width=lambda: _width(handler), colour=handler.has_vt_codes)
    for found in list(handler.filters):
        if isinstance(found, _WithoutConnections):
            handler.removeFilter(found)
    handler.addFilter(_WithoutConnections(handler))


def _width(handler: TermLogHandler) -> int | None:
    """Return the terminal's columns; None if the output is none."""
    try:
        return max(os.get_terminal_size(handler.file.fileno()).columns, MIN_WIDTH)
    except (OSError, ValueError):
        return None


class _WithoutConnections(logging.Filter):
    """Hides lines about connections, except for warnings; all are shown with `termlog_verbosity=debug`."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name != CONNECTIONS or self._handler.level <= logging.DEBUG:
            return True
        return record.levelno > logging.INFO and not str(record.msg).startswith(FAILED_GREETING)


class _WithAddLog(logging.Filter):
    def __init__(self, addons: AddonManager) -> None:
        super().__init__()
        self._addons = addons

    def filter(self, record: logging.LogRecord) -> bool:
        addons = self._addons
        chain = addons.may_have("add_log") if isinstance(addons, SparingAddonManager) else addons.chain
        return any(hasattr(addon, "add_log") for addon in traverse(chain))
