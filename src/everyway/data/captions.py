"""Captions of scenes in English and Korean; `data.reading` is the way back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from everyway.data.sample import OPPOSITE, Scene, SceneObject

_PLACE_EN = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "middle": ("in the middle",),
}
_PLACE_KO = {
    "left": "왼쪽",
    "right": "오른쪽",
    "top": "위쪽",
    "bottom": "아래쪽",
    "middle": "가운데",
}
_RELATION_EN = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
_RELATION_KO = {"left of": "왼쪽", "right of": "오른쪽", "above": "위", "below": "아래"}
_SIDE = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
Point = tuple[float, float]
"""From the top and from the left, each in [0, 1] of a picture."""
MIDDLE: Point = (0.5, 0.5)
_SIZE_KO = {"small": "작은", "large": "큰"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Lexicon:
    """objects: English -> Korean name.  backgrounds: English -> Korean colour, said before 배경.
    bare: English names that take no article."""

    objects: dict[str, str]
    backgrounds: dict[str, str]
    bare: frozenset[str] = field(default=frozenset())

    def to_json(self) -> dict[str, Any]:
        """Plain data, which `Lexicon(**data)` takes."""
        return {**vars(self), "bare": sorted(self.bare)}


def some(scene: Scene, rng: np.random.Generator) -> Scene:
    """The part of a scene that one caption states: objects always, the rest often."""
    size, place, background, relation = rng.random(4) < (0.6, 0.8, 0.8, 0.85)
    objects = tuple(
        replace(o, size=o.size if size else None, place=o.place if place else None)
        for o in scene.objects
    )
    return Scene(
        objects=objects,
        relation=scene.relation if relation else None,
        background=scene.background if background else None,
    )


def placeless(scene: Scene) -> Scene:
    """All of a scene but where its objects are."""
    return replace(
        scene, objects=tuple(replace(o, place=None) for o in scene.objects), relation=None
    )


def say(scene: Scene, rng: np.random.Generator, lexicon: Lexicon, lang: str = "en") -> str:
    """A caption that states all of `scene` and nothing else.  lang: "en" or "ko"."""
    if lang not in ("en", "ko"):
        raise ValueError(f"language {lang!r} is unknown; choose en or ko")
    if len(scene.objects) == 2 and rng.random() < 0.5:  # either object may be named first
        relation = OPPOSITE[scene.relation] if scene.relation else None
        scene = replace(scene, objects=scene.objects[::-1], relation=relation)
    form = rng.random()
    return (_english if lang == "en" else _korean)(scene, form, rng, lexicon)


def plain(scene: Scene, lexicon: Lexicon, lang: str = "en") -> str:
    """The one plain caption that states all of `scene` and nothing else; the left or upper object
    comes first: "a large fox left of a small teapot, blue background".

    In Korean names take no particle, so that every word is the same wherever it stands.
    """
    if lang not in ("en", "ko"):
        raise ValueError(f"language {lang!r} is unknown; choose en or ko")
    scene = scene.canonical()
    ground, relation, place = scene.background, scene.relation, scene.objects[0].place
    if lang == "en":
        names = [_noun(thing, lexicon) for thing in scene.objects]
        body = f" {relation or 'and'} ".join(names)
        body += f" {_PLACE_EN[place][0]}" if place else ""
        return f"{body}, {ground} background" if ground else body
    names = [_noun_ko(thing, lexicon) for thing in scene.objects]
    if relation:
        body = f"{names[1]} {_RELATION_KO[relation]}에 {names[0]}"
    else:
        body = (f"{_PLACE_KO[place]}에 " if place else "") + " 그리고 ".join(names)
    return f"{lexicon.backgrounds[ground]} 배경, {body}" if ground else body


def completed(scene: Scene, where: Mapping[str, Point] | None = None) -> Scene:
    """The scene with what it leaves unsaid as it usually is: large, in the middle, the first left
    of the second, on white.

    where: object -> where its middle is, from which place and relation follow; others are in the
    middle of the picture.  Of all objects, it overrules what the scene states.
    """
    where = where or {}
    points = [where.get(thing.name, MIDDLE) for thing in scene.objects]
    if all(thing.name in where for thing in scene.objects):
        scene = placeless(scene)
    if len(points) == 2:
        place, relation = None, scene.relation or _relation(*points)
    else:
        place, relation = scene.objects[0].place or _place(points[0]), None
    return Scene(
        objects=tuple(replace(o, size=o.size or "large", place=place) for o in scene.objects),
        relation=relation,
        background=scene.background or "white",
    )


def _place(point: Point) -> str:
    """Of the middle third of a picture, or the side that a point is nearest to."""
    if max(abs(a - b) for a, b in zip(point, MIDDLE)) < 1 / 6:
        return "middle"
    return _SIDE[_relation(point, MIDDLE)]


def _relation(first: Point, second: Point) -> str:
    """Of two points, along the longer way between them; "left of" where they are one."""
    down, right = (b - a for a, b in zip(first, second))
    if abs(down) > abs(right):
        return "above" if down > 0 else "below"
    return "left of" if right >= 0 else "right of"


def language(text: str) -> str:
    """ "ko" for a text with a Korean letter, else "en"."""
    return "ko" if re.search("[가-힣]", text) else "en"


def _english(scene: Scene, form: float, rng: np.random.Generator, lexicon: Lexicon) -> str:
    names = [_noun(thing, lexicon) for thing in scene.objects]
    colour = scene.background
    if len(names) == 1:
        place = scene.objects[0].place
        body = f"{names[0]} {_pick(_PLACE_EN[place], rng)}" if place else names[0]
    elif scene.relation is None:
        body = f"{names[0]} and {names[1]}"
    elif rng.random() < 0.7:
        body = f"{names[0]} {_pick(_RELATION_EN[scene.relation], rng)} {names[1]}"
    else:
        here, there = (_SIDE[r] for r in (scene.relation, OPPOSITE[scene.relation]))
        body = f"{names[0]} {_PLACE_EN[here][0]} and {names[1]} {_PLACE_EN[there][0]}"
    if not colour:
        return body if form < 0.7 else f"a picture of {body}"
    if form < 0.35:
        return f"{body} on {colour}" if not _is_placed(body) else f"{body}, {colour} background"
    if form < 0.6:
        return f"{body}, {colour} background"
    if form < 0.8:
        return f"on {_article(colour)} background, {body}"
    return f"{body} on {_article(colour)} background"


def _is_placed(body: str) -> bool:
    return body.endswith(("left", "right", "top", "bottom", "middle"))


def _korean(scene: Scene, form: float, rng: np.random.Generator, lexicon: Lexicon) -> str:
    names = [_noun_ko(thing, lexicon) for thing in scene.objects]
    ground = f"{lexicon.backgrounds[scene.background]} 배경" if scene.background else ""
    if len(names) == 1:
        place = scene.objects[0].place
        where = _PLACE_KO[place] if place else ""
        if where and form < 0.5:
            body = f"{where}에 있는 {names[0]}"
            return f"{ground} {body}" if ground else body
        if where:
            body = f"{where}에 {names[0]}"
            return f"{body}, {ground}" if ground else body
        if ground:
            return f"{ground}의 {names[0]}" if form < 0.5 else f"{names[0]}, {ground}"
        return names[0] if form < 0.7 else f"{names[0]} 그림"
    first, second = names
    if scene.relation is None:
        body = f"{first}{_joined(first, '과', '와')} {second}"
    else:
        where = _RELATION_KO[scene.relation]
        choice = rng.random()
        if choice < 0.45:
            body = f"{second} {where}에 있는 {first}"
        elif choice < 0.75:
            body = f"{first}{_joined(first, '이', '가')} {second} {where}에 있는 그림"
        else:
            here, there = (_PLACE_KO[_SIDE[r]] for r in (scene.relation, OPPOSITE[scene.relation]))
            body = f"{here}에 {first}, {there}에 {second}"
    if not ground:
        return body
    return f"{ground}에 {body}" if form < 0.6 else f"{body}, {ground}"


def _noun(thing: SceneObject, lexicon: Lexicon) -> str:
    words = f"{thing.size} {thing.name}" if thing.size else thing.name
    return words if thing.name in lexicon.bare else _article(words)


def _noun_ko(thing: SceneObject, lexicon: Lexicon) -> str:
    name = lexicon.objects[thing.name]
    return f"{_SIZE_KO[thing.size]} {name}" if thing.size else name


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" and not words.startswith("uni") else f"a {words}"


def _joined(word: str, closed: str, opened: str) -> str:
    """The particle after a syllable with or without a final consonant."""
    return closed if (ord(word[-1]) - 0xAC00) % 28 else opened


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))] if len(choices) > 1 else choices[0]
