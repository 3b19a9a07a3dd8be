"""How pictures and captions of one kind of data are read back and compared: the only view that the
scene score and the demo have of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from everyway.data import emoji
from everyway.data import lattice as lattice_data
from everyway.data import shapes as shapes_data
from everyway.data.folder import Folder
from everyway.data.listing import is_data
from everyway.data.sample import Sample
from everyway.data.styles import Styled
from everyway.metrics import folder, lattice, scenes, shapes
from everyway.request import RequestError

Seen = dict[str, bool]
CLASSIFIER = Path(__file__).parent.parent / "shipped" / "classifier"


@dataclass(frozen=True, kw_only=True)
class Judge:
    """read: pictures -> what each shows.  parse: a caption -> what it states, or None.

    score: (stated, seen or None) -> stated attribute -> right or wrong.  spell: what was seen, in
    words, given what was stated.  prompts: of the demo.  more: of its further rows, by title.
    redrawn: of the demo, a picture's prompt, then those that its right third is drawn anew for.
    features: pictures -> (N, F), for the distance between two sets of them; None: not measured.
    crispness: pictures -> PSNR in dB of each to what it was taken for; None: not measured.
    style: pictures -> the name of the style of each; None: they have none.
    unseen: (seed=, count=, split=) -> scenes of that kind, for the scene score.
    """

    read: Callable[[Sequence[Image.Image]], list[Any]]
    parse: Callable[[str], Any | None]
    score: Callable[[Any, Any | None], Seen]
    spell: Callable[[Any], str]
    prompts: tuple[str, ...]
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    redrawn: tuple[str, ...] = ()
    features: Callable[[Sequence[Image.Image]], Tensor] | None = None
    crispness: Callable[[Sequence[Image.Image]], list[float]] | None = None
    style: Callable[[Sequence[Image.Image]], list[str]] | None = None
    unseen: Callable[..., Any] | None = None

    def compare(self, stated: Any | None, seen: Any | None) -> Seen:
        """`score`, where a caption that names nothing is simply wrong."""
        return {"object": False} if stated is None else self.score(stated, seen)


@cache
def _classifier():
    return scenes.load_classifier(CLASSIFIER)


def _spell_scene(scene) -> str:
    things = [" ".join(filter(None, (o.size, o.name, o.place))) for o in scene.objects]
    ground = f" on {scene.background}" if scene.background else ""
    return f" {scene.relation or 'and'} ".join(things) + ground


EMOJI = Judge(
    read=lambda pictures: scenes.read(_classifier(), pictures),
    parse=emoji.parse_caption,
    score=scenes.score,
    spell=_spell_scene,
    prompts=(
        "a large fox on the left, blue background",
        "a small pizza in the middle on a green background",
        "a cactus left of a rocket on yellow",
        "분홍 배경에 큰 여우",
    ),
    features=lambda pictures: torch.from_numpy(scenes.features(_classifier(), pictures)),
    unseen=emoji.EmojiScenes,
)
LATTICE = Judge(
    read=lattice.read,
    parse=lattice_data.parse_caption,
    score=scenes.score,
    spell=_spell_scene,
    prompts=(
        "a large fox in the middle, blue background",
        "a small pizza on the left, green background",
        "a large rocket at the top, purple background",
        "a small penguin on the right, orange background",
    ),
    more={
        "two objects": (
            "a large fox left of a large teapot, blue background",
            "a large cactus above a small dog, yellow background",
            "a small rocket left of a large globe, black background",
            "a large panda above a large drum, pink background",
        ),
        "in Korean": (
            "분홍 배경, 가운데에 큰 펭귄",
            "노란 배경, 왼쪽에 작은 선인장",
            "파란 배경, 큰 판다 왼쪽에 큰 여우",
            "초록 배경, 작은 피자 위에 큰 호랑이",
        ),
        "in anybody's words": (
            "Draw me a tiny fox at the top, yellow behind it!",
            "on pink, a big pizza with a small dog to its right",
            "put a huge clock under a small kite, purple background",
            "a green picture: one little cactus in the center",
        ),
    },
    redrawn=(
        "a large fox left of a large teapot, blue background",
        "a large fox left of a large panda, blue background",
        "a large fox left of a small pizza, blue background",
        "a large fox on the left, blue background",
    ),
    features=lambda pictures: torch.from_numpy(scenes.features(_classifier(), pictures)),
    crispness=lattice.crispness,
    unseen=lattice_data.Lattice,
)
JUDGES: dict[str, Judge] = {
    "shapes": Judge(
        read=lambda pictures: [shapes.read(p) for p in pictures],
        parse=lambda text: shapes_data.parse(text) or None,
        score=lambda stated, seen: shapes.score(stated, seen or {}),
        spell=lambda seen: " ".join(seen.values()),
        prompts=(
            "a red circle left on white",
            "a green square right on black",
            "a yellow ring middle on blue",
            "a blue cross top on yellow",
        ),
    ),
    **dict.fromkeys(emoji.CURRICULUM, EMOJI),
    **dict.fromkeys(("lattice", "lattice-whole", "lattice-open", "lattice-with-style"), LATTICE),
    "lattice-styled": replace(
        LATTICE,
        read=lambda pictures: [seen.scene for seen in lattice.styled(pictures)],
        style=lambda pictures: [seen.style for seen in lattice.styled(pictures)],
        crispness=lambda pictures: [seen.db for seen in lattice.styled(pictures)],
        unseen=lambda **of: Styled(scenes=lattice_data.Lattice(**of)),
    ),
    "lattice-246": replace(
        LATTICE,
        read=partial(lattice.read, names=emoji.OBJECTS),
        parse=emoji.parse_caption,
        crispness=partial(lattice.crispness, names=emoji.OBJECTS),
        unseen=partial(lattice_data.Lattice, names=emoji.OBJECTS),
    ),
}


def judge_of(model) -> Judge:
    """The judge of the data that a model was trained on; of one's own folder, by what is in it.

    Raises RequestError where that is not known, or not here.
    """
    data = learned(model)
    return JUDGES[data] if data in JUDGES else judge_of_folder(samples_of(model, data, SAMPLES))


SAMPLES = 100
"""Of a folder, by which a demo judges."""


def learned(model) -> str:
    """The name or the path of the data that a model was trained on, or ""."""
    return model.metadata.get("training", {}).get("data", "")


def samples_of(model, path: str, n: int) -> list[Sample]:
    """At most n samples of a folder, spread evenly over it, as the model reads them.

    Raises RequestError where there is none.
    """
    if not path:
        raise RequestError(
            f"it is not known what {model.name} learned; give pictures with captions: --data FOLDER"
        )
    if not is_data(path):
        raise RequestError(f"the data {path!r} of {model.name} is not here; give --data FOLDER")
    system = model.system
    texts = "text" in system.raws
    data = Folder(path, model.image_size, texts, system.reads if texts else None)
    count = min(n, len(data))
    return [data.sample(k * len(data) // count) for k in range(count)]


def judge_of_folder(samples: Sequence[Sample]) -> Judge:
    """By the nearest of these pictures and captions."""
    captions = dict.fromkeys(s.captions[0] for s in samples if s.captions)
    return Judge(
        read=partial(folder.nearest, samples=samples),
        parse=partial(folder.named, samples=samples),
        score=folder.score,
        spell=lambda k: next(iter(samples[k].captions), samples[k].key),
        prompts=tuple(captions)[:4],
        crispness=partial(folder.crispness, samples=samples),
    )
