"""The sheet of the main job: every use that a model has, and no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everyway.apps import demo
from everyway.generate import Model
from everyway.metrics.judge import LATTICE
from everyway.request import RequestError


def able(nano, *tasks: str) -> Model:
    """Nano, as if it could do these tasks only."""
    system = replace(nano.system, tasks={name: nano.system.tasks[name] for name in tasks})
    return Model(name="less", hash="0", system=system, metadata=nano.metadata)


def titles(model: Model, out) -> list[str]:
    """Of what was told, once the sheet is written."""
    given: list[str] = []
    assert demo.demo(model, out, given.append, steps=3).is_file()
    return [title for title in demo.USES if any(line.startswith(title) for line in given)]


def test_a_unidiffuser_shows_every_use(nano, tmp_path):
    further = demo.judge_of(able(nano, "image")).more.keys() ^ LATTICE.more.keys()  # of lattices
    assert titles(nano, tmp_path) == [title for title in demo.USES if title not in further]


def test_what_a_model_cannot_do_is_left_out(nano, tmp_path):
    shown = titles(able(nano, "text-to-image", "image"), tmp_path)
    assert shown == [
        "text to image",
        "a part drawn anew, for other texts",
        "a picture from nothing",
        "partly forgotten, then drawn for another text",
    ]


def test_a_model_of_no_use_is_told_so(nano, tmp_path):
    with pytest.raises(RequestError, match="no demo for it"):
        demo.demo(able(nano), tmp_path, print)
