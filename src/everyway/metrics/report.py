"""Scores of a model with the whole protocol beside them.

A generated picture is read by a classifier whose own accuracy on real pictures stands in the same
report; captions are parsed back to records; only what a prompt or caption states is scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from everyway.data.captions import plain, some
from everyway.data.emoji import LEXICON
from everyway.data.sample import Sample, Scene, to_tensor
from everyway.data.shapes import Shapes
from everyway.errors import UsageError
from everyway.generate import Model, Preview, Result, Work
from everyway.job import jobs
from everyway.media import to_picture
from everyway.metrics.frechet import frechet_interval
from everyway.metrics.judge import (
    JUDGES,
    Judge,
    Seen,
    judge_of_folder,
    learned,
    samples_of,
)
from everyway.request import SETTINGS, GenerateRequest

N = 100
"""Scenes a row, where nobody says otherwise: minutes of `mini` on one core."""
Interval = dict[str, float]
"""value, low and high, of 95 %."""


def evaluate(
    model: Model,
    suite: str = "",
    n: int = N,
    seed: int = 1_000_000,
    rows: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    data: str = "",
    track: Callable[[str, float], None] = lambda row, done: None,
) -> dict[str, Any]:
    """`ROW.all_correct` for every row, and under `rows` each attribute with its interval.

    suite: "" is that of the model's own data.  n: scenes a row.  seed: of the scenes and samples;
    training uses others.  rows: only these; else all that the model has a task for.
    settings: of a GenerateRequest (steps, guidance, ...).
    data: a folder of pictures with captions, of the suite "folder"; "" is what the model learned.
    track: is given the row that is asked, and which share of all work is done.
    Raises UsageError for an unknown suite or row, or one of other data than the model's.
    """
    suite = _suite(model, suite, data)
    if n < 1:
        raise UsageError(f"n is {n}; at least 1 scene is needed")
    names, build = SUITES[suite]
    rows = [{"recogniser": "classifier"}.get(row, row) for row in rows]  # its former name
    wrong = set(rows) - set(names)
    if wrong:
        raise UsageError(f"there is no row {sorted(wrong)}; {suite} has {', '.join(names)}")
    kind = next((name for name in NO_TEXT if name in able(model)), "image")
    settings = model.settled(GenerateRequest(kind=kind, **(settings or {})))
    fields = GenerateRequest.model_fields
    settings = {n: v for n in SETTINGS if (v := getattr(settings, n)) != fields[n].default}
    rows = rows or [row for row in names if TASK_OF.get(row.split(".")[0], "") in able(model)]
    began = time.monotonic()
    judge, questions = build(model, n, seed, data or learned(model))
    distances: dict[str, dict[str, Interval]] = {
        kind: {} for kind in ("frechet", "crispness", "moved", "style")
    }
    table = {}
    for number, row in enumerate(rows):

        def within(done: float, row: str = row, number: int = number) -> None:
            track(row, (number + done) / len(rows))

        within(0.0)
        ask = _Asker(model, judge, seed, settings, within)
        if seen := questions[row](ask):
            table[row] = summarise(seen)
        for kind, distance in ask.distances():
            distances[kind][row] = distance
    protocol = settings | {"n": n, "seed": seed, "seconds": round(time.monotonic() - began, 1)}
    return {
        "model": model.name,
        "model_hash": model.hash,
        "suite": suite,
        **{f"{row}.all_correct": cells["all_correct"]["value"] for row, cells in table.items()},
        **{f"{row}.{kind}": c["value"] for kind, of in distances.items() for row, c in of.items()},
        "rows": table,
        **distances,
        "protocol": protocol,
    }


TASK_OF = {
    "t2i": "text-to-image",
    "i2t": "image-to-text",
    "i2i": "image-variation",
    "t2t": "text-variation",
    "joint": "joint",
    "image": "image",
}
"""The first word of a row -> the task it asks; a row without one asks the classifier alone."""


NO_TEXT = ("image", "image-variation")
"""Tasks by which a model is asked for its settings: no text chooses a language."""


def able(model: Model) -> set[str]:
    """The tasks of a model, and "" which needs none."""
    return {*model.system.tasks, ""}


SHAPES_ROWS = ("t2i", "i2t", "joint", "classifier")
SCENES_ROWS = (
    "t2i.one",
    "t2i.two",
    "t2i.partial",
    "t2i.ko.one",
    "t2i.ko.two",
    "i2t.one",
    "i2t.two",
    "i2i.one",
    "i2i.two",
    "t2t.one",
    "t2t.two",
    "joint",
    "image",
    "codec",
    "classifier",
)
FOLDER_ROWS = ("t2i", "i2t", "joint", "image", "codec", "classifier")
Question = Callable[["_Asker"], list[Seen]]
"""Asks a model for a row; of pictures of which nothing was stated there is nothing to compare."""


def shapes_suite(model: Model, n: int, seed: int, data: str) -> tuple[Judge, dict[str, Question]]:
    """The rows of the built-in coloured shapes."""
    shapes = Shapes(seed=seed, languages=("en",))
    samples = [shapes.sample(index) for index in range(n)]
    truths = [s.record for s in samples]
    return JUDGES["shapes"], {
        "t2i": lambda ask: ask.t2i([s.captions[0] for s in samples]),
        "i2t": lambda ask: ask.i2t(samples, truths),
        "joint": lambda ask: ask.joint(n),
        "classifier": lambda ask: ask.real(samples, truths),
    }


def scenes_suite(model: Model, n: int, seed: int, data: str) -> tuple[Judge, dict[str, Question]]:
    """One object; two objects whose pair no model has met; prompts that leave something unsaid, of
    both in turn; both languages on the same scenes; variations of pictures and of texts; pictures
    with a text of their own, and without one; real pictures through the image codec.
    """
    judge = JUDGES[data]
    assert judge.unseen is not None  # `_suite` has seen to it
    sets = {
        "one": judge.unseen(seed=seed, count=1),
        "two": judge.unseen(seed=seed, count=2, split="heldout"),
    }
    samples = {name: [scenes.sample(i) for i in range(n)] for name, scenes in sets.items()}
    truths = {name: [Scene.from_json(s.record) for s in part] for name, part in samples.items()}
    every, truth = samples["one"] + samples["two"], truths["one"] + truths["two"]
    partial = [_partial(truths[("one", "two")[i % 2]][i], (seed, i)) for i in range(n)]

    def drawn(count: str, language: int) -> Question:  # of a scene's captions that state the same
        prompts = [s.captions[language] for s in samples[count]]
        return lambda ask: ask.t2i(prompts, [s.image for s in samples[count]])

    return judge, {
        "t2i.one": drawn("one", 0),
        "t2i.two": drawn("two", 0),
        "t2i.partial": lambda ask: ask.t2i(partial),
        "t2i.ko.one": drawn("one", 1),
        "t2i.ko.two": drawn("two", 1),
        "i2t.one": lambda ask: ask.i2t(samples["one"], truths["one"]),
        "i2t.two": lambda ask: ask.i2t(samples["two"], truths["two"]),
        "i2i.one": lambda ask: ask.i2i(samples["one"], truths["one"]),
        "i2i.two": lambda ask: ask.i2i(samples["two"], truths["two"]),
        "t2t.one": lambda ask: ask.t2t([s.captions[0] for s in samples["one"]]),
        "t2t.two": lambda ask: ask.t2t([s.captions[0] for s in samples["two"]]),
        "joint": lambda ask: ask.joint(n),
        "image": lambda ask: ask.image(n),
        "codec": lambda ask: ask.codec(every, truth),
        "classifier": lambda ask: ask.real(every, truth),
    }


def _partial(scene: Scene, seed: tuple[int, int]) -> str:
    """An English prompt that leaves something of a scene unsaid."""
    rng = np.random.default_rng(seed)
    while (stated := some(scene, rng)) == scene:
        pass
    return plain(stated, LEXICON)


def folder_suite(model: Model, n: int, seed: int, data: str) -> tuple[Judge, dict[str, Question]]:
    """Pictures and captions of a folder of one's own, told apart from one another."""
    samples = samples_of(model, data, n)
    truths = [frozenset({k}) for k in range(len(samples))]
    numbers = range(len(samples))
    return judge_of_folder(samples), {
        "t2i": lambda ask: ask.t2i([s.captions[0] for s in samples]),
        "i2t": lambda ask: ask.i2t(samples, [*numbers]),
        "joint": lambda ask: ask.joint(len(samples)),
        "image": lambda ask: ask.image(len(samples)),
        "codec": lambda ask: ask.codec(samples, truths),
        "classifier": lambda ask: ask.real(samples, truths),
    }


SUITES = {
    "scenes": (SCENES_ROWS, scenes_suite),
    "shapes": (SHAPES_ROWS, shapes_suite),
    "folder": (FOLDER_ROWS, folder_suite),
}


def _suite(model: Model, asked: str, data: str) -> str:
    """The suite of the data, or of what the model learned; UsageError for another one."""
    what = data or learned(model)
    own = "folder" if what not in JUDGES else "shapes" if what == "shapes" else "scenes"
    if asked and asked not in SUITES:
        raise UsageError(f"suite {asked!r} is unknown; choose one of {', '.join(SUITES)}")
    if asked and asked != own:
        raise UsageError(f"suite {asked} is of other data than {what or model.name}; choose {own}")
    return own


class _Asker:
    """Asks a model for a row, and has a judge compare what was asked, said and seen."""

    def __init__(
        self,
        model: Model,
        judge: Judge,
        seed: int,
        settings: dict,
        track: Callable[[float], None],
    ) -> None:
        self.model, self.judge, self.seed, self.settings = model, judge, seed, settings
        self.track = track
        self.made: list[Image.Image] = []
        self.real_ones: Sequence[np.ndarray] = ()
        self.moved: list[bool] = []
        self.style: list[bool] = []

    def t2i(self, prompts: list[str], real: Sequence[np.ndarray] = ()) -> list[Seen]:
        """real: pictures of the same scenes, if the distance to them is to be measured."""
        self.made = [r.image for r in self._make(kind="text-to-image", text=prompts)]
        self.real_ones = real
        seen = self.judge.read(self.made)
        return [self.judge.compare(self.judge.parse(p), s) for p, s in zip(prompts, seen)]

    def distances(self) -> Iterator[tuple[str, Interval]]:
        """Of the pictures that were made to real ones, and to what each was taken for; of
        variations, the share that is laid out otherwise, and that keeps the style."""
        features, crispness = self.judge.features, self.judge.crispness
        if features and len(self.real_ones) > 1:
            real = features([Image.fromarray(x) for x in self.real_ones])
            three = frechet_interval(real, features(self.made))
            yield "frechet", {k: round(v, 4) for k, v in zip(("value", "low", "high"), three)}
        if crispness and self.made:
            yield "crispness", interval(np.array(crispness(self.made)), np.random.default_rng(0))
        if self.moved:
            yield "moved", interval(np.array(self.moved, float), np.random.default_rng(0))
        if self.style:
            yield "style", interval(np.array(self.style, float), np.random.default_rng(0))

    def i2t(self, samples: list[Sample], truths: list) -> list[Seen]:
        pictures = [Image.fromarray(s.image) for s in samples]
        made = self._make(kind="image-to-text", image=pictures)
        return [self.judge.compare(self.judge.parse(r.text), t) for r, t in zip(made, truths)]

    def i2i(self, samples: list[Sample], truths: list[Scene]) -> list[Seen]:
        """A variation shows what its picture does, wherever."""
        self.real_ones = [s.image for s in samples]
        pictures = [Image.fromarray(x) for x in self.real_ones]
        self.made = [r.image for r in self._make(kind="image-variation", image=pictures)]
        seen = self.judge.read(self.made)
        self.moved = [_layout(a) != _layout(b) for a, b in zip(truths, seen)]
        if self.judge.style:
            drawn = self.judge.style(self.made)
            self.style = [s.raw["style"] == style for s, style in zip(samples, drawn)]
        return [self.judge.compare(_contents(t), s) for t, s in zip(truths, seen)]

    def t2t(self, texts: list[str]) -> list[Seen]:
        """A variation states what its text does."""
        made, parse = self._make(kind="text-variation", text=texts), self.judge.parse
        return [self.judge.compare(parse(text), parse(r.text)) for text, r in zip(texts, made)]

    def joint(self, n: int) -> list[Seen]:
        made = self._unconditional("joint", n)
        self.made = [r.image for r in made]
        seen = self.judge.read(self.made)
        return [self.judge.compare(self.judge.parse(r.text), s) for r, s in zip(made, seen)]

    def image(self, n: int) -> list[Seen]:
        """Pictures without a text: nothing was stated, so only their looks are measured."""
        self.made = [r.image for r in self._unconditional("image", n)]
        return []

    @torch.inference_mode()
    def codec(self, samples: list[Sample], truths: list) -> list[Seen]:
        """The judge on real pictures that went through the image codec and back."""
        system = self.model.system
        states = system.encode({"image": to_tensor([s.image for s in samples])})
        self.made = [to_picture(pixels) for pixels in system.decode(states)["image"]]
        return [self.judge.compare(t, s) for t, s in zip(truths, self.judge.read(self.made))]

    def real(self, samples: list[Sample], truths: list) -> list[Seen]:
        """The judge on real pictures, every attribute stated."""
        seen = self.judge.read([Image.fromarray(s.image) for s in samples])
        return [self.judge.compare(t, s) for t, s in zip(truths, seen)]

    def _make(self, **given: Any) -> list[Result]:
        """In the order of what is given."""
        return self._run(jobs({"seed": self.seed, **given, **self.settings}, self.model.system))

    def _unconditional(self, kind: str, n: int) -> list[Result]:
        one = GenerateRequest(kind=kind, **self.settings)
        seeds = range(self.seed, self.seed + n)
        return self._run([one.model_copy(update={"seed": seed}) for seed in seeds])

    def _run(self, work: Work) -> list[Result]:
        made = []
        for event in self.model.run(work):
            if isinstance(event, Preview):
                self.track(event.done)
            else:
                made.append(event)
        return made


def _contents(scene: Scene) -> Scene:
    """The scene, without where its objects are."""
    objects = tuple(replace(thing, place=None) for thing in scene.objects)
    return replace(scene, objects=objects, relation=None)


def _layout(scene: Scene) -> tuple:
    """Where its objects are: a lone one's place; of two, which is on which side."""
    scene = scene.canonical()
    places = tuple(thing.place for thing in scene.objects)
    return (scene.relation, *scene.names) if scene.relation else places


def summarise(seen: list[Seen], draws: int = 1000) -> dict[str, Any]:
    """attribute -> {value, low, high, n}: the mean with a 95 % bootstrap interval over scenes.

    seen: for each scene, stated attribute -> right or wrong.  `all_correct` is their conjunction.
    """
    names = sorted({name for row in seen for name in row})
    columns = {a: np.array([row[a] for row in seen if a in row], float) for a in names}
    columns["all_correct"] = np.array([bool(row) and all(row.values()) for row in seen], float)
    rng = np.random.default_rng(0)
    return {name: interval(values, rng, draws) for name, values in columns.items()}


def interval(values: np.ndarray, rng: np.random.Generator, draws: int = 1000) -> Interval:
    """The mean of `values` with a 95 % bootstrap interval, and how many they are."""
    means = rng.choice(values, (draws, len(values))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    three = {"value": values.mean(), "low": low, "high": high}
    return {name: round(float(x), 4) for name, x in three.items()} | {"n": len(values)}
