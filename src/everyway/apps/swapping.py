"""What each expert of an ensemble does: its loss where others would be asked, and the score of the
model without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from everyway.errors import UsageError
from everyway.generate import Model, load
from everyway.metrics.report import evaluate
from everyway.process.intervals import Interval
from everyway.systems import ensemble
from everyway.train import measure
from everyway.train.config import remembered

UNSEEN = 256


def report(
    model: Model, root: str | None, n: int, seed: int, rows: Sequence[str]
) -> dict[str, Any]:
    """losses: the rows of `measure.by_expert`.  scores: of the whole model (`without` is ""), and
    with each expert swapped for the model `root`, or else for its neighbour.

    n: scenes a row of the score, 0 for none; of a cascade, whose experts are those of its base,
    they are of the enlarged pictures.  Raises UsageError for a model without experts.
    """
    experts = model.metadata.get("experts")
    if "experts" not in model.system.config or not experts:
        raise UsageError(
            f"{model.name} is no ensemble of experts; make one: everyway experts split"
        )
    cells = [Interval(**{k: row[k] for k in ("name", "low", "high")}) for row in experts]
    config = remembered(model.metadata["training"])
    made = {"model": model.name, "losses": measure.by_expert(model.system, config, cells, UNSEEN)}
    scored = [_scored(model, "", "", n, seed, rows)] if n else []
    other = load(root, device=str(model.system.device)).system.network if root else None
    for number, cell in enumerate(cells if n else ()):
        neighbour = cells[number + 1 if number + 1 < len(cells) else number - 1].name
        by = other or model.system.networks[f"network.{neighbour}"]
        swapped = replace(model, system=_without(model, cell.name, by))
        scored.append(_scored(swapped, cell.name, root or neighbour, n, seed, rows))
    return made | {"scores": scored}


def _without(model: Model, name: str, by: nn.Module):
    return ensemble.swapped(model.system, name, by)


def _scored(
    model: Model, without: str, by: str, n: int, seed: int, rows: Sequence[str]
) -> dict[str, Any]:
    suite = "shapes" if model.metadata["training"]["data"] == "shapes" else "scenes"
    found = evaluate(model, suite, n, seed, rows)
    return {"without": without, "by": by, "rows": found["rows"], "frechet": found["frechet"]}
