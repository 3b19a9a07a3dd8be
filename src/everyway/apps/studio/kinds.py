"""The names of kinds of requests for people: one table for the plane, menus, tiles and cards."""

from __future__ import annotations

from collections.abc import Iterable

from everyway.apps.studio.views import Say
from everyway.request import GenerateRequest

CALLED = {
    "text-to-image": "words → picture",
    "image-to-text": "picture → words",
    "joint": "both at once",
    "image": "a picture alone",
    "text": "words alone",
    "class-to-image": "class → picture",
    "image-to-image": "redraw the picture",
    "inpaint": "redraw a part",
    "edit-image": "edit by words",
    "vary-image": "vary the picture",
    "image-variation": "vary the picture",
    "vary-text": "say it in other words",
    "text-variation": "say it in other words",
    "interpolate": "between two pictures",
    "chain": "words, picture, words, …",
    "upscale": "enlarge the picture",
}
"""Kind of a request, or task of a model -> its name."""


def called(kind: str) -> str:
    """The name of a kind; for a task that stands in no table, its own name with spaces."""
    return CALLED.get(kind, kind.replace("-", " "))


def called_of(request: GenerateRequest, requests: int = 1) -> str:
    """The name of what a request makes.  requests: how many were asked for at once."""
    if requests > 1:
        return "settings compared"
    if request.paint:
        return "painted words"
    return "a blend" if request.contexts else called(request.kind)


def choices(kinds: Iterable[str], say: Say) -> list[tuple[str, str]]:
    """Kinds as the choices of a menu: (name, kind)."""
    return [(say(called(kind)), kind) for kind in kinds]
