"""Scores of a model with the whole protocol beside them.

A generated picture is read by a recogniser whose own accuracy on real pictures stands in the same
report; captions are parsed back to records; only what a prompt states is scored.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from everyway.data.shapes import Shapes, parse
from everyway.generate import Model
from everyway.metrics import shapes
from everyway.request import GenerateRequest

Seen = dict[str, bool]


def evaluate(
    model: Model,
    suite: str = "shapes",
    n: int = 200,
    seed: int = 1_000_000,
    steps: int = 25,
    guidance: float = 2.5,
    sampler: str = "dpm++2m",
) -> dict[str, Any]:
    """rows: t2i, i2t, joint and recogniser, each attribute -> {value, low, high, n}.

    n: scenes a row.  seed: of the scenes and samples; training uses others.
    Raises ValueError for an unknown suite.
    """
    if suite not in SUITES:
        raise ValueError(f"suite {suite!r} is unknown; choose one of {', '.join(SUITES)}")
    if n < 1:
        raise ValueError(f"n is {n}; at least 1 scene is needed")
    settings = dict(seed=seed, steps=steps, guidance=guidance, sampler=sampler)
    began = time.monotonic()
    rows = {name: summarise(list(row)) for name, row in SUITES[suite](model, n, settings)}
    protocol = settings | {"n": n, "seconds": round(time.monotonic() - began, 1)}
    return {
        "model": model.name,
        "model_hash": model.hash,
        "suite": suite,
        "rows": rows,
        "protocol": protocol,
    }


def shapes_suite(model: Model, n: int, settings: dict) -> Iterator[tuple[str, Iterator[Seen]]]:
    """The rows of the built-in coloured shapes."""
    data = Shapes(seed=settings["seed"], languages=("en",))
    scenes = [data.sample(index) for index in range(n)]

    def ask(kind: str, index: int, **inputs):
        seed = settings["seed"] + index
        request = GenerateRequest(kind=kind, **settings | {"seed": seed}, **inputs)
        return model.generate(request)[0]

    def t2i() -> Iterator[Seen]:
        for index, scene in enumerate(scenes):
            made = ask("text-to-image", index, text=scene.captions[0])
            yield shapes.score(scene.record, shapes.read(made.image))

    def i2t() -> Iterator[Seen]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scene.png"
            for index, scene in enumerate(scenes):
                Image.fromarray(scene.image).save(path)
                made = ask("image-to-text", index, images=(str(path),))
                yield shapes.score(scene.record, parse(made.text))

    def joint() -> Iterator[Seen]:
        for index in range(n):
            made = ask("joint", index)
            said = parse(made.text)
            seen = shapes.score(said, shapes.read(made.image))
            yield seen or dict.fromkeys(shapes.ATTRIBUTES, False)  # a caption that says nothing

    def real() -> Iterator[Seen]:
        for scene in scenes:
            yield shapes.score(scene.record, shapes.read(scene.image))

    yield from {"t2i": t2i(), "i2t": i2t(), "joint": joint(), "recogniser": real()}.items()


SUITES: dict[str, Callable] = {"shapes": shapes_suite}


def summarise(seen: list[Seen], draws: int = 1000) -> dict[str, Any]:
    """attribute -> {value, low, high, n}: the mean with a 95 % bootstrap interval over scenes.

    seen: for each scene, stated attribute -> right or wrong.  `all_correct` is their conjunction.
    """
    rng = np.random.default_rng(0)
    names = sorted({name for row in seen for name in row})
    columns = {a: np.array([row[a] for row in seen if a in row], float) for a in names}
    columns["all_correct"] = np.array([bool(row) and all(row.values()) for row in seen], float)
    out = {}
    for name, values in columns.items():
        means = rng.choice(values, (draws, len(values))).mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        out[name] = {
            "value": round(float(values.mean()), 4),
            "low": round(float(low), 4),
            "high": round(float(high), 4),
            "n": len(values),
        }
    return out
