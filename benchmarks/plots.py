"""Plots as SVG. Text and axes take the page's colour, so that they are readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, BAR_HEIGHT, LEFT, RIGHT, TOP = 820, 22, 390, 70, 40
PLOT_HEIGHT = 260
COLOURS = ("#0969da", "#bf8700", "#8250df")
STYLE = """<style>
text { font: 12px sans-serif; fill: #1f2328 } .axis { stroke: #6e7781; fill: none } .limit { stroke: #cf222e }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .axis { stroke: #8d96a0 } .limit { stroke: #f85149 } }
</style>"""


def bars(title: str, unit: str, rows: Sequence[tuple[str, float, float | None]]) -> str:
    """Draw a bar for each value, with a line where its limit is."""
    most = 1.1 * max(max(value, limit or 0) for _, value, limit in rows)
    height = TOP + BAR_HEIGHT * len(rows) + 30
    scale = (WIDTH - LEFT - RIGHT) / most
    parts = [_text(LEFT, 20, f"{title} ({unit})")]
    for number, (name, value, limit) in enumerate(rows):
        y = TOP + BAR_HEIGHT * number
        parts.append(_text(LEFT - 8, y + 14, name, "end"))
        parts.append(f'<rect x="{LEFT}" y="{y + 3}" width="{value * scale:.1f}" height="14" fill="{COLOURS[0]}"/>')
        parts.append(_text(LEFT + max(value, limit or 0) * scale + 6, y + 14, f"{value:.2f}"))
        if limit is not None:
            x = LEFT + limit * scale
            parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 20}" stroke-width="2"/>')
    bottom = TOP + BAR_HEIGHT * len(rows)
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>')
    parts += [_text(LEFT + most / 4 * n * scale, bottom + 16, f"{most / 4 * n:.2g}", "middle") for n in range(5)]
    return _svg(title, height, parts)


def lines(title: str, x_unit: str, y_unit: str, xs: Sequence[float], series: Mapping[str, Sequence[float]]) -> str:
    """Draw a line for each series over the same places."""
    left, bottom = 70, TOP + PLOT_HEIGHT
    most_x, most_y = max(xs) or 1.0, 1.1 * max(max(values) for values in series.values()) or 1.0
    across, up = (WIDTH - left - RIGHT) / most_x, PLOT_HEIGHT / most_y
    parts = [_text(left, 16, title), f'<path class="axis" d="M{left} {TOP}V{bottom}H{WIDTH - RIGHT}"/>']
    for number, (name, values) in enumerate(series.items()):
        places = " ".join(f"{left + x * across:.1f},{bottom - y * up:.1f}" for x, y in zip(xs, values, strict=True))
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<rect x="{left + 200 * number}" y="24" width="12" height="4" fill="{colour}"/>')
        parts.append(_text(left + 200 * number + 18, 30, name))
    for n in range(5):
        parts.append(_text(left + most_x / 4 * n * across, bottom + 16, f"{most_x / 4 * n:.3g}", "middle"))
        parts.append(_text(left - 6, bottom - most_y / 4 * n * up + 4, f"{most_y / 4 * n:.3g}", "end"))
    parts.append(_text((left + WIDTH - RIGHT) / 2, bottom + 34, x_unit, "middle"))
    parts.append(_text(6, TOP - 4, y_unit))
    return _svg(title, bottom + 44, parts)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *parts, "</svg>"]) + "\n"
