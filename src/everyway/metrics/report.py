"""Scores of a model with the whole protocol beside them.

Suite `scenes`: a recogniser trained on real scenes names what a generated picture shows, captions
are parsed back to records, and only what a prompt states is scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from everyway.generate import Model, Result
from everyway.request import GenerateRequest

SUITES = ("scenes",)
Seen = dict[str, bool]


def evaluate(
    model: Model,
    suite: str = "scenes",
    n: int = 1000,
    seed: int = 1_000_000,
    steps: int = 25,
    guidance: float = 2.5,
    sampler: str = "dpm++2m",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Keys: t2i.one, t2i.two, t2i.ko.one, i2t.one, i2t.two, joint, recogniser: each holds a value
    with a bootstrap interval for every attribute and `all_correct`; protocol holds the settings.

    seed: of the first scene; training scenes use other seeds.  Raises ValueError for a bad suite.
    """
    if suite not in SUITES:
        raise ValueError(f"suite {suite!r} is unknown; choose one of {', '.join(SUITES)}")
    from everyway.metrics import scene_suite

    settings = dict(seed=seed, steps=steps, guidance=guidance, sampler=sampler)
    began = time.monotonic()
    rows = scene_suite.rows(model, n, progress=progress, **settings)
    report: dict[str, Any] = {"model": model.name, "model_hash": model.hash, "suite": suite}
    report |= {name: summarise(seen) for name, seen in rows.items()}
    report["protocol"] = settings | {"n": n, "seconds": round(time.monotonic() - began, 1)}
    return report


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


def results(model: Model, requests: Iterator[GenerateRequest]) -> Iterator[Result]:
    """The first result of each request."""
    for request in requests:
        yield model.generate(request)[0]
