"""A folder that changes between two starts of a run: what changed is told, and what cannot go on
is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everyway.data.faults import FolderError
from everyway.data.folder import Folder
from everyway.train import data_changes, sources, train
from everyway.train.config import ConfigError, resolve
from everyway.train.data_changes import FILE
from everyway.train.systems import prepared

UVIT = "recipes/uvit-nano.toml"
SETTINGS = dict(batch=4, cache=8, device="cpu", precision="fp32", cooldown=0, publish=False)


def picture(path: Path, seed: int, caption: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    if caption:
        path.with_suffix(".txt").write_text(caption)


@pytest.fixture
def folder(tmp_path) -> Path:
    for k in range(4):
        picture(tmp_path / "data" / "ab"[k % 2] / f"{k}.png", k)
    return tmp_path / "data"


def started(folder: Path, out: Path, steps: int, **settings) -> list[str]:
    """The lines that a start of the run tells."""
    said: list[str] = []
    own = {"preset": "nano-class", "data": str(folder), **SETTINGS, "steps": steps, **settings}
    train(resolve(UVIT, own, str(out)), note=said.append)
    return [line for line in said if "changed" in line]


def test_what_changed_is_told_once(folder, tmp_path):
    out = tmp_path / "run"
    assert started(folder, out, 1) == started(folder, out, 2) == []
    picture(folder / "a" / "new.png", 9)
    picture(folder / "a" / "0.png", 10)
    os.utime(folder / "a" / "0.png", ns=(1, 1))
    (folder / "b" / "3.png").unlink()
    (line,) = started(folder, out, 3)
    assert line == (
        f"{folder} changed since the last start: 1 new, 1 gone, 1 changed; the run goes on with "
        "what is there now, and ends otherwise than one uninterrupted"
    )
    assert started(folder, out, 4) == []
    assert len(json.loads((out / FILE).read_text())["samples"]) == 4


def test_classes_that_a_network_counts_cannot_change(folder, tmp_path):
    out = tmp_path / "run"
    started(folder, out, 1)
    (folder / "a").rename(folder / "c")
    with pytest.raises(ConfigError, match="2 new, 2 gone.*other words or classes.*take the ch"):
        started(folder, out, 2)
    (folder / "c").rename(folder / "a")
    assert started(folder, out, 2) == []


def test_a_class_keeps_the_number_that_a_model_knows_it_by(folder, tmp_path):
    """Also in a folder that lacks one before it; and one that a model does not know is refused."""
    started(folder, tmp_path / "run", 1)
    (folder / "a").rename(tmp_path / "gone")
    config = {"preset": "nano-class", "init": str(tmp_path / "run"), "data": str(folder)}
    resolved = resolve(UVIT, {**config, **SETTINGS}, str(tmp_path / "next"))
    data = sources.data_of(prepared(resolved), resolved)
    assert data.classes == ("a", "b") and {sample.label for sample in data} == {1}
    (folder / "b").rename(folder / "c")
    with pytest.raises(FolderError, match="has a class 'c', and the classes of the model are a, b"):
        sources.data_of(prepared(resolved), resolved)


def test_before_a_state_is_saved_nothing_is_told(folder, tmp_path):
    told: list[str] = []
    data_changes.tell(tmp_path, Folder(folder), told.append)
    picture(folder / "a" / "new.png", 9)
    data_changes.tell(tmp_path, Folder(folder), told.append)
    (tmp_path / "state.safetensors").touch()
    data_changes.tell(tmp_path, Folder(folder), told.append)
    assert told == []
    (tmp_path / FILE).write_text("{")
    data_changes.tell(tmp_path, Folder(folder), told.append)
    assert told == [] and len(json.loads((tmp_path / FILE).read_text())["samples"]) == 5


def test_a_caption_that_is_another_counts_as_changed(tmp_path):
    for k in range(2):
        picture(tmp_path / "data" / f"{k}.png", k, "a dot")
    former = Folder(tmp_path / "data").stamps()
    (tmp_path / "data" / "1.txt").write_text("a dash")
    now = Folder(tmp_path / "data").stamps()
    assert [name for name in now if now[name] != former[name]] == ["1.png"]


def test_the_training_of_a_codec_tells_it_too(tmp_path, caplog):
    picture(tmp_path / "data" / "0.png", 0, "a dot")
    settings = {"data": str(tmp_path / "data"), "codecs": str(tmp_path)}
    config = resolve("codec-image", settings, str(tmp_path))
    config.model.learner(config, print)
    (tmp_path / "state.safetensors").touch()
    picture(tmp_path / "data" / "new.png", 9, "a dot")
    config.model.learner(config, print)
    assert "changed since the last start: 1 new, 0 gone, 0 changed; the run goes on" in caplog.text
