"""A Gaussian process from plain data, for the configs of systems: every schedule by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from everyway.errors import UsageError
from everyway.process.gaussian import (
    EPS,
    FLOW,
    X0,
    Clean,
    EDMPrecond,
    GaussianProcess,
    Parameterisation,
    V,
)
from everyway.process.schedules import (
    CosineVP,
    DiscreteVP,
    EDMSigma,
    LinearVP,
    Rectified,
    Schedule,
    ZeroTerminal,
)


def _zero_terminal(**settings: Any) -> Schedule:
    return ZeroTerminal(base=DiscreteVP(**settings))


SCHEDULES: dict[str, tuple[Callable[..., Schedule], str]] = {
    "linear": (LinearVP, "eps"),
    "discrete": (DiscreteVP, "eps"),
    "cosine": (CosineVP, "v"),
    "cosine-x0": (CosineVP, "x0-faded"),
    "zero-terminal": (_zero_terminal, "v"),
    "flow": (Rectified, "flow"),
    "edm": (EDMSigma, "edm"),
}
"""Name -> (schedule, what a network on it predicts by default)."""
PREDICTIONS: dict[str, Callable[..., Parameterisation]] = {
    "eps": lambda: EPS,
    "x0": lambda: X0,
    "x0-faded": partial(Clean, faded=True),
    "v": lambda: V,
    "flow": lambda: FLOW,
    "edm": EDMPrecond,
}


def named(settings: str | Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a process, its name among them."""
    return {"name": settings} if isinstance(settings, str) else dict(settings)


def gaussian(settings: str | Mapping[str, Any]) -> GaussianProcess:
    """A name in SCHEDULES, or {"name": ..., "predicts": ..., ...} with settings of the schedule and
    of the prediction.

    predicts: a name in PREDICTIONS.  sigma_data: of "edm".  floor: of "x0-faded".  Raises
    ValueError for what is unknown, and for a prediction that its schedule does not allow.
    """
    own = named(settings)
    name = own.pop("name", "")
    if name not in SCHEDULES:
        raise UsageError(f"schedule {name!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    schedule, predicts = SCHEDULES[name]
    predicts = own.pop("predicts", predicts)
    if predicts not in PREDICTIONS:
        known = ", ".join(PREDICTIONS)
        raise UsageError(f"prediction {predicts!r} is unknown; choose one of {known}")
    options = {key: own.pop(key) for key in ("sigma_data", "floor") if key in own}
    made = partial(PREDICTIONS[predicts], **options)
    try:
        with torch.device("cpu"):  # numbers, also where networks are made on the meta device
            return GaussianProcess(schedule=schedule(**own), parameterisation=made())
    except TypeError as error:
        raise UsageError(f"schedule {name!r} with {predicts!r}: {error}") from None
