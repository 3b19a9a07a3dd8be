"""What a data set gives: a picture, its captions, and the scene they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SIZES = ("small", "large")
PLACES = ("left", "right", "top", "bottom", "middle")
RELATIONS = ("left of", "above", "right of", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """image: uint8 (H, W, 3).  captions: one or more.  record: plain data (JSON), or None.

    label: the number of its class, where it has one.
    raw: what else it has, by the name of the raw data: a sound's numbers, a style.
    """

    image: np.ndarray
    captions: tuple[str, ...]
    record: dict[str, Any] | None = None
    key: str = ""
    label: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """Pictures of one size, uint8 (H, W, 3), as float32 (B, 3, H, W) in [-1, 1]."""
    import torch  # data is drawn and written without it

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """size: one of SIZES.  place: one of PLACES, for a lone object.  None: not stated."""

    name: str
    size: str | None = None
    place: str | None = None

    def __post_init__(self) -> None:
        _one_of("size", self.size, SIZES)
        _one_of("place", self.place, PLACES)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two objects; `relation` says where the first is, seen from the second.

    The same type holds a whole scene and the part of one that a caption states: None is unstated.
    """

    objects: tuple[SceneObject, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= 2:
            raise ValueError(f"a scene has 1 or 2 objects, not {len(self.objects)}")
        if self.relation is not None and len(self.objects) != 2:
            raise ValueError(f"relation {self.relation!r} needs two objects")
        _one_of("relation", self.relation, RELATIONS)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(thing.name for thing in self.objects)

    def canonical(self) -> Scene:
        """The same scene with the left or upper object first; by name if no relation is known."""
        if len(self.objects) == 1:
            return self
        turned = replace(
            self,
            objects=self.objects[::-1],
            relation=OPPOSITE[self.relation] if self.relation else None,
        )
        if self.relation is None:
            return min(self, turned, key=lambda scene: scene.names)
        return self if self.relation in RELATIONS[:2] else turned

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not stated is left out."""
        objects = [
            {k: v for k, v in vars(thing).items() if v is not None} for thing in self.objects
        ]
        rest = {"relation": self.relation, "background": self.background}
        return {"objects": objects} | {k: v for k, v in rest.items() if v is not None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scene:
        """The inverse of `to_json`.  Raises ValueError for anything that is not a scene."""
        try:
            objects = tuple(SceneObject(**thing) for thing in data["objects"])
            rest = {k: v for k, v in data.items() if k != "objects"}
            return cls(objects=objects, **rest)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the record of a scene: {error}") from None


def _one_of(what: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{what} {value!r} is unknown; choose one of {', '.join(choices)}")
