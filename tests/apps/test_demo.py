"""The sheet of the main job: every use that a model has, and no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everyway.apps import demo
from everyway.generate import Model
from everyway.metrics.judge import LATTICE
from everyway.request import RequestError
from everyway.tasks import TASKS
from everyway.train.config import resolve
from everyway.train.sources import Data

VARIATIONS = {"image-variation", "text-variation"}


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
    further |= {title for title, (needed, _) in demo.USES.items() if not needed <= {*TASKS}}
    assert titles(nano, tmp_path) == [title for title in demo.USES if title not in further]


def test_four_flows_show_blends_and_focus_beside_what_others_do(tmp_path):
    """Of weights that have learned nothing."""
    system = resolve("mini-versatile").model.system(Data("lattice-whole", 0))
    metadata = {"image_size": 96, "training": {"data": "lattice-whole"}}
    model = Model(name="fresh", hash="0", system=system, metadata=metadata)
    given: list[str] = []
    assert demo.demo(model, tmp_path, given.append, steps=1).is_file()
    shown = [title for title in demo.USES if any(line.startswith(title) for line in given)]
    mine = {title for title, (needed, _) in demo.USES.items() if needed & VARIATIONS}
    assert len(mine) == 4 and mine <= {*shown}
    assert not {title for title, (needed, _) in demo.USES.items() if "joint" in needed} & {*shown}


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
