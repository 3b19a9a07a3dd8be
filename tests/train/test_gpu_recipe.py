"""The recipe for a GPU, on the CPU with a tiny budget."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from everyway.checkpoints import store
from everyway.data import emoji
from everyway.data.emoji import MissingFont, find_font
from everyway.train import fitted

ROOT = Path(__file__).parents[2]
TINY = (
    "--batch 4 --dim 64 --depth 2 --records 40 --scenes 120 --steps 3 --log-every 1 --n 1 "
    "--device cpu --out out"
).split()


def _font() -> bool:
    try:
        return bool(find_font())
    except MissingFont:
        return False


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """Runs the recipe with arguments in an empty folder."""
    spec = importlib.util.spec_from_file_location("gpu_recipe", ROOT / "recipes" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_recipe", module)
    spec.loader.exec_module(module)
    short = {name: replace(world, steps=2) for name, world in module.WORLDS.items()}
    monkeypatch.setattr(module, "WORLDS", short)
    monkeypatch.setattr(fitted, "PORTRAITS", 1)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu.py", *TINY, *arguments])
        return module.main()

    yield run
    for cached in (emoji._artwork, emoji.sprite):
        cached.cache_clear()


@pytest.mark.skipif(not _font(), reason="no emoji font")
def test_what_is_prepared_where_the_font_is_is_trained_where_it_is_not(recipe, monkeypatch):
    assert recipe("prepare", "--world", "hard") == 0
    monkeypatch.setattr(emoji, "FONT_FOLDERS", ())
    for cached in (emoji._artwork, emoji.sprite):
        cached.cache_clear()
    assert recipe("all", "--world", "hard") == 0
    document = store.document(Path("out/model"))
    assert document["facts"]["history"][-1]["steps"] == 3
    assert document["facts"]["training"]["data"] == "emoji"
    scores = json.loads(Path("out/scores.json").read_text(encoding="utf-8"))
    assert scores["codec.all_correct"] == 1.0
    assert Path("out/demo.png").stat().st_size > 0


def test_a_recipe_without_font_and_artwork_says_what_to_do(recipe, monkeypatch, capsys):
    monkeypatch.setattr(emoji, "FONT_FOLDERS", ())
    emoji._artwork.cache_clear()
    assert recipe("prepare") == 2
    assert "install it with" in capsys.readouterr().out


@pytest.mark.skipif(not _font(), reason="no emoji font")
def test_a_network_whose_file_would_be_too_large_is_refused_before_it_trains(
    recipe, monkeypatch, capsys
):
    monkeypatch.setattr(sys.modules["gpu_recipe"], "LIMIT", 1000)
    assert recipe("train", "--world", "lattice246") == 2
    assert "choose a smaller --dim" in capsys.readouterr().out
    assert not Path("out/model").exists()


@pytest.mark.skipif(not _font(), reason="no emoji font")
def test_a_training_goes_on_from_an_exported_average(recipe):
    assert recipe("train", "--world", "lattice246") == 0
    assert recipe("train", "--world", "lattice246", "--init", "out/model", "--out", "more") == 0
