"""The card says what a model learned from, how long, and its scores."""

from __future__ import annotations

import shutil

from everyway.checkpoints import store
from everyway.checkpoints.card import ABOUT, add_scores, write_card
from everyway.data.folder import write_folder
from everyway.data.shapes import Shapes
from everyway.generate import load
from everyway.library import SHIPPED
from everyway.train import train
from everyway.train.sources import BUILT_IN

CELL = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 40}
REPORT = {
    "suite": "shapes",
    "rows": {"t2i": {"all_correct": CELL, "colour": CELL | {"value": 0.75}}},
    "protocol": {"n": 40, "steps": 25, "null": ""},
}


def test_a_training_leaves_a_card(tmp_path):
    overrides = {"cache": "64", "batch": "8", "steps": "2"}
    metadata = train("nano", **overrides, out=str(tmp_path / "a"))
    text = (tmp_path / "a/model/README.md").read_text(encoding="utf-8")
    assert "unidiffuser: nano" in text and "coloured shapes" in text
    assert "| transformer | shapes | 2 | 8 | 16 |" in text
    assert "from nothing; no pretrained part" in text and "Licence: Apache-2.0." in text
    train("nano", **overrides, init=metadata["model"], seed=1, out=str(tmp_path / "b"))
    text = (tmp_path / "b/model/README.md").read_text(encoding="utf-8")
    assert text.count("| transformer | shapes | 2 | 8 | 16 |") == 2
    assert "Trained on from `a`." in text and "Licence: Apache-2.0." in text


def test_a_card_states_only_what_is_known(tmp_path):
    """Of somebody's pictures, and of a start from a shipped model."""
    write_folder(tmp_path / "mine", (Shapes(seed=1, languages=("en",)).sample(k) for k in range(4)))
    given = dict(
        data=str(tmp_path / "mine"), init="nano", batch=4, steps=1, out=str(tmp_path / "a")
    )
    train("nano", **given)
    text = (tmp_path / "a/model/README.md").read_text(encoding="utf-8")
    assert "Trained on from `nano`." in text and "Licence: not stated" in text
    assert "Apache" not in text and "from nothing" not in text and str(tmp_path) not in text
    train("nano", **given | {"steps": 2, "licence": "CC-BY-4.0"})
    text = (tmp_path / "a/model/README.md").read_text(encoding="utf-8")
    assert "Licence: CC-BY-4.0." in text


def test_scores_are_kept_and_the_model_is_the_same(tmp_path):
    folder = tmp_path / "nano"
    shutil.copytree(SHIPPED / "nano", folder)
    former = load(str(folder))
    write_card(folder)
    add_scores(folder, REPORT)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "| t2i | 0.250 | 0.200 to 0.300 | colour 0.750 |" in text and "steps 25" in text
    assert store.fingerprint(folder) == former.hash
    assert load(str(folder)).metadata["scores"]["shapes"] == REPORT


def test_every_built_in_set_is_told_about():
    assert ABOUT.keys() == set(BUILT_IN)
