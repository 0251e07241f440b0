"""Name injected tools. Names are valid for every provider, unique, and independent of the tools' order."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

from aibridge_addon.dialects.our_calls import MAX_LENGTH, PREFIX

Pair = tuple[str, str]
"""A server's name and a tool's original name."""

_INVALID = re.compile(r"[^A-Za-z0-9_-]")
_DIGITS = 8


def assign(pairs: Iterable[Pair]) -> dict[Pair, str]:
    """Name tools `bmcp_<server>_<tool>`.

    - Invalid characters become `_`.
    - Names that are too long are cut and get a hash of the pair.
    - Names that two pairs would share get the hash too, so that no name depends on the order.
    """
    digits = dict.fromkeys(sorted(set(pairs)), 0)
    while True:
        names = {pair: _name(pair, digits[pair]) for pair in digits}
        counts = Counter(names.values())
        clashing = [pair for pair, name in names.items() if counts[name] > 1]
        if not clashing:
            return names
        for pair in clashing:
            digits[pair] += _DIGITS


def _name(pair: Pair, digits: int) -> str:
    plain = PREFIX + _INVALID.sub("_", "_".join(pair))
    if len(plain) > MAX_LENGTH:
        digits = max(digits, _DIGITS)
    if not digits:
        return plain
    digest = hashlib.sha256("\0".join(pair).encode("utf-8", "surrogatepass")).hexdigest()[:digits]
    return f"{plain[: MAX_LENGTH - 1 - digits]}_{digest}"
