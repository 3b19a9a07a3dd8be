"""A plot of curves as SVG, which needs no library and is a few kB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

INKS = ("#0b6bcb", "#c8372d", "#1d8a4c", "#8a5cd1")
WIDTH, HEIGHT, LEFT, BELOW, ABOVE = 520, 300, 52, 44, 34


def curves_svg(
    curves: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, title: str = ""
) -> str:
    """Named curves of (x, y), in the order of their points; y from 0 to 1.

    Raises ValueError where there is no point.
    """
    xs = [x for points in curves.values() for x, _ in points]
    if not xs:
        raise ValueError("there is no point to draw")
    low, high = min(xs), max(xs)
    wide, tall = WIDTH - LEFT - 12, HEIGHT - ABOVE - BELOW

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + wide * (x - low) / ((high - low) or 1), ABOVE + tall * (1 - y)

    parts = [_text(WIDTH / 2, 16, title, "middle"), _text(WIDTH / 2, HEIGHT - 6, x_label, "middle")]
    parts.append(_text(LEFT - 40, ABOVE - 8, y_label, "start"))
    for k in range(5):
        share = k / 4
        (x, y), here = at(low, share), low + share * (high - low)
        parts.append(f'<path d="M{x:.1f} {y:.1f}h{wide}" stroke="#ddd"/>')
        parts.append(_text(x - 6, y + 4, f"{share:g}", "end"))
        parts.append(_text(at(here, 0)[0], HEIGHT - BELOW + 16, f"{here:.3g}", "middle"))
    for number, (name, points) in enumerate(curves.items()):
        ink = INKS[number % len(INKS)]
        line = "L".join("{:.1f} {:.1f}".format(*at(x, y)) for x, y in points)
        parts.append(f'<path d="M{line}" fill="none" stroke="{ink}" stroke-width="2"/>')
        parts.append(_text(WIDTH - 16, ABOVE + 14 + 16 * number, name, "end", ink))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([f"{head} {style}", *parts, "</svg>\n"])


def _text(x: float, y: float, words: str, anchor: str, ink: str = "#444") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{ink}">{escape(words)}</text>'
