"""Line charts as SVG, which need nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDE, HIGH, LEFT, BELOW = 640, 260, 52, 34


def lines(
    given: Mapping[str, Sequence[tuple[float, float]]],
    vertical: str,
    horizontal: str,
    falling: bool = False,
) -> str:
    """A chart of lines with a legend above, "" for fewer than two points.

    given: name -> points (x, y) of a line.  vertical, horizontal: names of the axes.
    falling: whether the greatest x stands on the left.
    """
    points = [point for line in given.values() for point in line]
    if len(points) < 2:
        return ""
    xs, ys = zip(*points)
    x0, x1, y0, y1 = min(xs), max(xs), min(0.0, min(ys)), max(ys) * 1.05 or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        share = (x - x0) / ((x1 - x0) or 1)
        share = 1 - share if falling else share
        height = (y - y0) / ((y1 - y0) or 1)
        return LEFT + share * (WIDE - LEFT - 10), HIGH - BELOW - height * (HIGH - BELOW - 12)

    drawn, legend = "", ""
    for k, (name, line) in enumerate(given.items()):
        path = "L".join("{:.1f} {:.1f}".format(*at(x, y)) for x, y in line)
        drawn += f'<path class="ew-curve ew-curve-{k}" d="M{path}"/>'
        legend += f'<span class="ew-curve-{k}">{escape(name)}</span>'
    ticks = ""
    for part in (0.0, 0.5, 1.0):
        value = y0 + part * (y1 - y0)
        _, y = at(x0, value)
        ticks += f'<path class="ew-rule" d="M{LEFT} {y:.1f}H{WIDE - 10}"/>'
        ticks += f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2g}</text>'
    for value in (x0, (x0 + x1) / 2, x1):
        x, _ = at(value, y0)
        ticks += (
            f'<text x="{x:.1f}" y="{HIGH - 18}" text-anchor="middle">{round(value, 2):.5g}</text>'
        )
    foot = f'<text x="{WIDE / 2}" y="{HIGH - 2}" text-anchor="middle">{escape(horizontal)}</text>'
    return (
        f'<figure class="ew-chart"><div class="ew-legend">{legend}</div>'
        f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(vertical)}">'
        f"{ticks}{drawn}{foot}</svg></figure>"
    )
