"""Plots as SVG, made of markup that the browser scales. Colours are classes of the style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 720.0, 180.0
BOTTOM = 22.0
"""Space for the names of columns."""
LEFT = 52.0
"""Space for the numbers of the scale."""
MAX_LABELS = 8
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a column or a bar."""

    kind: str
    """The class of its colour."""
    value: float
    text: str
    """What is shown beside the pointer."""


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    parts: Sequence[Part]

    @property
    def value(self) -> float:
        return sum(part.value for part in self.parts)


def columns(bars: Sequence[Bar], *, title: str, unit: str = "") -> Markup:
    """Return columns beside each other, each stacked from its parts. `title`: for those who cannot see it."""
    top = _round_up(max((bar.value for bar in bars), default=0.0))
    plot = HEIGHT - BOTTOM
    pieces = [
        Markup('<svg class="plot" viewBox="0 0 {w:g} {h:g}" role="img" aria-label="{title}">').format(
            w=WIDTH, h=HEIGHT, title=title
        )
    ]
    for share in (0.0, 0.5, 1.0):
        y = plot - share * (plot - 10)
        pieces.append(
            Markup(
                '<line class="grid" x1="{left:g}" x2="{w:g}" y1="{y:g}" y2="{y:g}"/>'
                '<text class="scale" x="{x:g}" y="{b:g}">{text}</text>'
            ).format(left=LEFT, w=WIDTH, y=round(y, 1), x=LEFT - 6, b=round(y + 4, 1), text=_number(top * share) + unit)
        )
    step = (WIDTH - LEFT) / max(1, len(bars))
    every = -(-len(bars) // MAX_LABELS)
    for number, bar in enumerate(bars):
        x, y = LEFT + number * step, plot
        for part in bar.parts:
            height = part.value / top * (plot - 10) if top else 0.0
            if height <= 0:
                continue
            y -= height
            pieces.append(
                Markup(
                    '<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"><title>{text}</title></rect>'
                ).format(
                    kind=part.kind,
                    x=round(x + step * 0.1, 2),
                    y=round(y, 2),
                    w=round(step * 0.8, 2),
                    h=round(max(height, 0.5), 2),
                    text=f"{bar.name}: {part.text}",
                )
            )
        if number % every == 0:
            pieces.append(
                Markup('<text class="label" x="{x:g}" y="{y:g}">{text}</text>').format(
                    x=round(x + step / 2, 1), y=HEIGHT - 6, text=bar.name
                )
            )
    return Markup("").join([*pieces, Markup("</svg>")])


def stack(parts: Sequence[Part], *, title: str, whole: float | None = None) -> Markup:
    """Return one bar of parts beside each other. `whole`: what the full width stands for, else the sum."""
    full = whole or sum(part.value for part in parts)
    pieces = [Markup('<svg class="stack" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label="{}">')]
    pieces[0] = pieces[0].format(title)
    x = 0.0
    for part in parts:
        width = min(100.0 - x, part.value / full * 100) if full else 0.0
        if width <= 0:
            continue
        pieces.append(
            Markup('<rect class="{}" x="{:g}" y="0" width="{:g}" height="6"><title>{}</title></rect>').format(
                part.kind, round(x, 3), round(width, 3), part.text
            )
        )
        x += width
    return Markup("").join([*pieces, Markup("</svg>")])


def _round_up(value: float) -> float:
    """Return the next number that is easy to read."""
    if value <= 0:
        return 0.0
    size = 10.0 ** math.floor(math.log10(value))
    return next((step * size for step in STEPS if step * size >= value * 0.999999), value)


def _number(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}"
