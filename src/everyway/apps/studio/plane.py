"""The plane of times: how noisy the picture is, and how noisy the words.  Every way of a model is a
line in it, which is why one model goes them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from everyway.apps.studio.kinds import called
from everyway.apps.studio.views import Say, address, tag

WAYS = {
    "text-to-image": ((404, 300), (152, 300)),
    "image-to-text": ((130, 46), (130, 278)),
    "joint": ((400, 49), (146, 285)),
    "image": ((404, 40), (152, 40)),
    "text": ((410, 46), (410, 278)),
}
"""Kind -> the start and the end of its line on the drawing, in pixels."""
OFF = {"image": 18, "image-to-text": 18, "text": 18}
"""Kind -> how far below its line its name stands; those of others are above."""
LEVELS = (0.0, 0.35, 0.6, 0.8, 1.0)
"""Noise levels of the examples beside the axes."""

BOX = 'x="130" y="40" width="280" height="260" rx="6"'
HEAD = (
    '<marker id="ew-head" viewBox="0 0 10 10" refX="7" refY="5" markerWidth="5" markerHeight="5" '
    'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z"/></marker>'
)
GRAIN = (
    '<filter id="ew-grain"><feTurbulence type="fractalNoise" baseFrequency=".45" '
    'numOctaves="2"/><feColorMatrix values="2.6 0 0 0 -.8 0 2.6 0 0 -.8 0 0 2.6 0 -.8 0 0 0 0 1"/>'
    "</filter>"
)
RISING = (
    '<linearGradient id="ew-rising" x1="0" y1="1" x2="1" y2="0"><stop offset=".1"/><stop '
    'offset="1" stop-color="#fff"/></linearGradient><mask id="ew-noisy"><rect '
    f'{BOX} fill="url(#ew-rising)"/></mask>'
)
FIELD = (
    f'<defs>{HEAD}{GRAIN}{RISING}</defs><rect class="ew-field" {BOX}/>'
    f'<rect class="ew-noise" {BOX} filter="url(#ew-grain)" mask="url(#ew-noisy)"/>'
)
"""The square behind the ways: clean in one corner, all noise in the opposite one."""


def drawing(picture: Image.Image, words: str, kinds: Sequence[str], say: Say) -> str:
    """The whole plane with its ways as buttons.  picture, words: an example that says the same."""
    marks = []
    for level, x in zip(LEVELS, np.linspace(130, 410, len(LEVELS))):
        noisy = address(_noisy(picture, level))
        marks.append(f'<image href="{noisy}" x="{x - 22:.0f}" y="318" width="44" height="44"/>')
    for level, y in zip(LEVELS, np.linspace(300, 40, len(LEVELS))):
        said = escape(_scrambled(words, level))
        marks.append(f'<text class="ew-axis" x="116" y="{y + 4:.0f}">{said}</text>')
    arrows = [_arrow(kind, say) for kind in WAYS if kind in kinds]
    under = say("clean ← the picture → noise")
    marks.append(f'<text class="ew-caption" x="270" y="384">{escape(under)}</text>')
    over = escape(say("the words"))
    marks.append(f'<text class="ew-caption" x="116" y="22" text-anchor="end">{over}</text>')
    label = say("every way is a line from noise to what is clean")
    body = "".join([FIELD, *marks, *arrows])
    return (
        f'<svg class="ew-plane" viewBox="0 6 440 388" role="group" aria-label="{escape(label)}">'
        f"{body}</svg>"
    )


def _arrow(kind: str, say: Say) -> str:
    """A way as a button."""
    (x0, y0), (x1, y1) = WAYS[kind]
    said, x, y = escape(say(called(kind))), (x0 + x1) / 2, (y0 + y1) / 2
    turn = {"image-to-text": -90, "text": 90}.get(kind, -43 if kind == "joint" else 0)
    return (
        f'<g class="ew-way" data-way="{kind}" role="button" tabindex="0" aria-label="{said}">'
        f'<path class="ew-hit" d="M{x0} {y0}L{x1} {y1}"/>'
        f'<path class="ew-line" d="M{x0} {y0}L{x1} {y1}" marker-end="url(#ew-head)"/>'
        f'<text x="{x:.0f}" y="{y:.0f}" dy="{OFF.get(kind, -8)}" '
        f'transform="rotate({turn} {x:.0f} {y:.0f})">{said}</text></g>'
    )


def small(times: Mapping[str, float], say: Say) -> str:
    """Where a run is in the plane, by clock -> time; "" for a run without both clocks."""
    if not {"image", "text"} <= times.keys():
        return ""
    x, y = 4 + 36 * times["image"], 40 - 36 * times["text"]
    label = say("left: a clean picture; bottom: clean words")
    return (
        f'<svg class="ew-small-plane" viewBox="0 0 44 44" role="img" aria-label="{escape(label)}">'
        f'<title>{escape(label)}</title><rect x="4" y="4" width="36" height="36" rx="3"/>'
        f'<path d="M{x:.1f} {y:.1f}L4 40"/><circle cx="{x:.1f}" cy="{y:.1f}" r="4"/></svg>'
    )


def _noisy(picture: Image.Image, level: float) -> Image.Image:
    """A small picture at a noise level in [0, 1]."""
    pixels = np.asarray(picture.resize((44, 44), Image.Resampling.LANCZOS), dtype=float)
    noise = np.random.default_rng(0).normal(127, 70, pixels.shape)
    mixed = (1 - level) * pixels + level * noise
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _scrambled(words: str, level: float) -> str:
    """Words with that part of their letters replaced, level in [0, 1]."""
    lot = np.random.default_rng(1).random(len(words))
    return "".join("░" if p < level and c != " " else c for p, c in zip(lot, words))


def hero(picture: Image.Image, words: str, kinds: Sequence[str], say: Say) -> str:
    """The front of the studio: what one model going every way means."""
    told = tag(
        "div",
        tag("h1", escape(say("One model goes every way"))),
        tag(
            "p",
            escape(
                say(
                    "Give it words and it draws. Give it a picture and it tells. Give it nothing, "
                    "and picture and words appear together."
                )
            ),
            class_="ew-lead",
        ),
        tag(
            "p",
            escape(
                say(
                    "It is one network that takes noise away, with two clocks: one says how noisy "
                    "the picture is, the other the words. What is given is clean, what is made "
                    "comes out of noise, what is left out stays noise. Try a line."
                )
            ),
        ),
        class_="ew-told",
    )
    return tag("section", told, drawing(picture, words, kinds, say), class_="ew-hero")
