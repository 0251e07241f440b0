"""mitmproxy's options of the addon."""

from __future__ import annotations

import difflib

from mitmproxy.addonmanager import Loader
from mitmproxy.options import Options

from aibridge_addon.config.errors import ConfigError, Problem

CONFIG_VARIABLE = "AIBRIDGE_CONFIG"
CONFIG = "aibridge_config"
DATABASE = "aibridge_database"
METRICS = "aibridge_metrics"
OPTIONS = (CONFIG, DATABASE, METRICS)
"""Those with which a configuration is made. A change of one makes a new one."""
KEEP_BODIES = "aibridge_keep_bodies"
KEPT = 2**20
"""Default of `KEEP_BODIES`: bytes."""
NAMES = (*OPTIONS, KEEP_BODIES)
SIMILAR = 0.85
"""Ratio from which on an unknown option counts as a misspelt one of these."""


def add_options(loader: Loader) -> None:
    texts = (
        f"Path of aibridge's configuration file (or {CONFIG_VARIABLE} in the environment).",
        "URL of aibridge's database; wins over the configuration file.",
        "Address of aibridge's metrics, such as 127.0.0.1:9465, or `off`; wins over the configuration file.",
    )
    for name, text in zip(OPTIONS, texts, strict=True):
        loader.add_option(name, str, "", text)
    loader.add_option(
        KEEP_BODIES,
        int,
        KEPT,
        "Bytes of a streamed answer that mitmproxy and mitmweb keep to show it. 0: none. mitmdump keeps none.",
    )


def check_names(options: Options) -> None:
    """Raise ConfigError if an option of the addon was misspelt. mitmproxy ignores unknown options without a word."""
    wrong = [name for name in options.deferred if name not in options and _is_meant_for_us(name)]
    if wrong:
        raise ConfigError([Problem(name, "an unknown option", _allowed(name), "mitmproxy's options") for name in wrong])


def _is_meant_for_us(name: str) -> bool:
    return name.startswith("aibridge") or bool(difflib.get_close_matches(name, NAMES, n=1, cutoff=SIMILAR))


def _allowed(name: str) -> str:
    nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    return f"one of {', '.join(NAMES)}" + (f' (did you mean "{nearest[0]}"?)' if nearest else "")
