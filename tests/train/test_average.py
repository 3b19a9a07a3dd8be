"""The mean of a network and one that was trained on from it."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch

from everyway.checkpoints import store
from everyway.generate import load
from everyway.train import average, train
from everyway.train.config import resolve

SMALL = {"cache": "64", "batch": "8", "warmup": "2"}


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    """A model folder of two steps, and one trained on from it."""
    out = tmp_path_factory.mktemp("lessons")
    first = train(resolve("nano", SMALL | {"steps": "2"}, out=str(out / "a")))["model"]
    told = SMALL | {"steps": "3", "init": first, "seed": "1"}
    return first, train(resolve("nano", told, out=str(out / "b")))["model"]


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["average", *map(str, arguments)])
    return average.main()


def test_every_weight_is_the_mean(lessons, tmp_path, monkeypatch):
    assert run(monkeypatch, *lessons, "--share", "0.75", "--out", tmp_path / "mean") == 0
    a, b, mean = (
        load(str(m), device="cpu").system.network.state_dict()
        for m in (*lessons, tmp_path / "mean")
    )
    assert any(not torch.equal(a[k], b[k]) for k in a)
    for name, value in mean.items():  # kept in float32
        wanted = 0.25 * a[name].float() + 0.75 * b[name].float()
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)
    facts = store.document(tmp_path / "mean")["facts"]
    assert [row["steps"] for row in facts["history"]] == [2, 3]
    assert facts["history"][-1]["averaged"] == 0.75
    assert "0.75 of the last" in (tmp_path / "mean" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--share", "1.5"], "from 0 to 1"),
        (["--share", "nan"], "from 0 to 1"),
    ],
)
def test_other_shares_are_refused(lessons, tmp_path, monkeypatch, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *lessons, *arguments, "--out", tmp_path / "mean")
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_what_is_no_model_is_told(lessons, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, lessons[0], tmp_path / "none", "--out", tmp_path / "mean")
    assert ended.value.code == 2 and "none" in capsys.readouterr().err


def test_networks_of_other_sizes_are_told(lessons, tmp_path, monkeypatch, capsys):
    told = SMALL | {"steps": "1", "init": lessons[0], "patch": "2"}
    other = train(resolve("nano", told, out=str(tmp_path / "c")))["model"]
    with pytest.raises(SystemExit):
        run(monkeypatch, lessons[0], other, "--out", tmp_path / "mean")
    assert "other sizes" in capsys.readouterr().err


def test_a_model_that_was_not_trained_here_is_told(lessons, tmp_path, monkeypatch, capsys):
    bare = shutil.copytree(lessons[1], tmp_path / "bare")
    store.set_facts(bare, store.document(bare)["facts"] | {"history": []})
    with pytest.raises(SystemExit):
        run(monkeypatch, lessons[0], bare, "--out", tmp_path / "mean")
    assert "was not trained here" in capsys.readouterr().err
