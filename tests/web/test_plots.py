"""Plots: their sizes add up, and what they are given stays text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.web.plots import Bar, Part, columns, stack

HOSTILE = '"><script>alert(1)</script>&amp;'


@given(st.lists(st.floats(0, 1e15), max_size=8))
def test_the_parts_of_a_bar_fill_it(values: list[float]) -> None:
    svg = ElementTree.fromstring(stack([Part("ok", value, "x") for value in values], title="t"))
    widths = [float(rect.get("width", "0")) for rect in svg]
    assert sum(widths) <= 100.01
    if sum(values) > 0:
        assert sum(widths) >= 99.9


@given(st.lists(st.lists(st.floats(0, 1e12), min_size=1, max_size=3), max_size=40))
def test_columns_stay_within_the_plot(bars: list[list[float]]) -> None:
    plot = columns([Bar("d", [Part("ok", value, "x") for value in values]) for values in bars], title="t")
    for rect in ElementTree.fromstring(plot).iter("rect"):
        y, height = float(rect.get("y", "")), float(rect.get("height", ""))
        assert y >= 0 and y + height <= 180


def test_names_in_a_bar_stay_text() -> None:
    svg = stack([Part("ok", 1, HOSTILE)], title=HOSTILE)
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).get("aria-label") == HOSTILE


def test_names_in_columns_stay_text() -> None:
    svg = columns([Bar(HOSTILE, [Part("ok", 1, HOSTILE)])], title=HOSTILE)
    assert "<script" not in svg
    assert HOSTILE in re.sub(r"\s+", " ", "".join(ElementTree.fromstring(svg).itertext()))
