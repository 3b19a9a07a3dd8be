"""What people call what a model makes; the one table of it for plane, menus, tiles and cards."""

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
"""Kind of a request, or a task of a model -> its words."""


def called(kind: str) -> str:
    """The words for a kind; its own, plain, for one that only a model of others has."""
    return CALLED.get(kind, kind.replace("-", " "))


def called_of(request: GenerateRequest, requests: int = 1) -> str:
    """The words for what a request makes.  requests: as many as were made as one."""
    if requests > 1:
        return "settings compared"
    if request.paint:
        return "painted words"
    return "a blend" if request.contexts else called(request.kind)


def choices(kinds: Iterable[str], say: Say) -> list[tuple[str, str]]:
    """Kinds for a menu."""
    return [(say(called(kind)), kind) for kind in kinds]
