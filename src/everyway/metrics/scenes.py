"""What the classifier sees in pictures of Emoji Scenes, and whether it is what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from everyway.data.emoji import HEADS, OBJECTS, scene_of
from everyway.data.sample import Scene, to_tensor
from everyway.nets.classifier import Classifier

ATTRIBUTES = ("object", "size", "place", "relation", "background")
SIDE = 64
Picture = np.ndarray | Image.Image


def load_classifier(path: Path) -> Classifier:
    """The classifier of a safetensors file, or of the folder that holds classifier.safetensors."""
    path = Path(path)
    weights = load_file(path / "classifier.safetensors" if path.is_dir() else path)
    net = Classifier(HEADS)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    return net.eval()


@torch.inference_mode()
def read(net: Classifier, images: Sequence[Picture], chunk: int = 100) -> list[Scene]:
    """The whole scene that each picture shows.  images: uint8 (H, W, 3) or Pillow, any size."""
    return [scene_of(row) for part in _chunks(images, chunk) for row in classes(net(part))]


@torch.inference_mode()
def features(net: Classifier, images: Sequence[Picture], chunk: int = 100) -> np.ndarray:
    """(N, F) float32 features, for a Fréchet distance between two sets of pictures."""
    return np.concatenate([net.features(part).numpy() for part in _chunks(images, chunk)])


def classes(logits: dict[str, Tensor]) -> list[dict[str, int]]:
    """The likeliest class of every head, a dict a picture; the two objects always differ."""
    second = logits["second"].clone()
    rows = torch.arange(len(second))
    second[rows, logits["first"].argmax(1)] = -torch.inf
    best = {k: v.argmax(1).tolist() for k, v in (logits | {"second": second}).items()}
    return [dict(zip(best, row)) for row in zip(*best.values())]


def score(stated: Scene, seen: Scene | None) -> dict[str, bool]:
    """attribute -> right or wrong, for the attributes that `stated` states.

    object: the same names and no more.  size: of every object whose size is stated.  relation: both
    objects, the right way round.  None was seen: all wrong.
    """
    two = len(stated.objects) == 2
    asked = {
        "object": True,
        "size": any(thing.size for thing in stated.objects),
        "place": not two and stated.objects[0].place is not None,
        "relation": stated.relation is not None,
        "background": stated.background is not None,
    }
    return {name: seen is not None and _right(name, stated, seen) for name in asked if asked[name]}


def _right(name: str, stated: Scene, seen: Scene) -> bool:
    if name == "background":
        return stated.background == seen.background
    if name == "object":
        return sorted(stated.names) == sorted(seen.names)
    if len(stated.objects) != len(seen.objects):
        return False
    if name == "relation":
        a, b = stated.canonical(), seen.canonical()
        return (a.names, a.relation) == (b.names, b.relation)
    if name == "place":
        return stated.objects[0].place == seen.objects[0].place
    if len(stated.objects) == 1:
        return stated.objects[0].size == seen.objects[0].size
    sizes = {thing.name: thing.size for thing in seen.objects}
    return all(sizes.get(thing.name) == thing.size for thing in stated.objects if thing.size)


def known(scene: Scene) -> bool:
    """Whether the classifier has a class for every object of the scene."""
    return all(name in OBJECTS for name in scene.names)


def _chunks(images: Sequence[Picture], chunk: int):
    """(B, 3, 64, 64) float tensors in [-1, 1]."""
    for start in range(0, len(images), chunk):
        yield to_tensor([_pixels(image) for image in images[start : start + chunk]])


def _pixels(image: Picture) -> np.ndarray:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture = picture.convert("RGB")
    if picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(picture)
