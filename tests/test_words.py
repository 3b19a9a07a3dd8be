"""Former names in files and commands are still read."""

from __future__ import annotations

import pytest
import torch

from everyway.contracts import contexts_in
from everyway.metrics.report import SUITES
from everyway.sampling.solvers import ALIASES, SAMPLERS
from everyway.train.config import names, resolve

FORMER = {
    "law": (
        {"system": "uvit", "law": "knots"},
        {"system": "uvit", "distribution": "knots"},
    ),
    "law in a table": (
        {"system": "uvit", "times": {"law": "knots"}},
        {"system": "uvit", "times": {"distribution": "knots"}},
    ),
    "recompute": ({"recompute": "1"}, {"gradient_checkpointing": "1"}),
    "recompute in a run folder": (
        {"run": {"recompute": True}},
        {"run": {"gradient_checkpointing": True}},
    ),
    "told_time": (
        {"system": "uvit", "told_time": "norm"},
        {"system": "uvit", "time_conditioning": "norm"},
    ),
}


@pytest.mark.parametrize("former, now", FORMER.values(), ids=FORMER)
def test_settings(former, now):
    assert resolve("nano", former) == resolve("nano", now) != resolve("nano")


def test_the_classifier():
    assert resolve("recogniser") == resolve("classifier")
    assert "classifier" in names() and "recogniser" not in names()
    assert all("classifier" in rows for rows, _ in SUITES.values())


def test_cached_contexts():
    text = torch.zeros(2, 3, 4)
    assert contexts_in({"told.text": text})["text"].tokens is text


def test_samplers():
    assert all(SAMPLERS[alias] is SAMPLERS[name] for alias, name in ALIASES.items())
