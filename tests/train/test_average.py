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
def stages(tmp_path_factory):
    """A model folder of two steps, and one trained on from it."""
    out = tmp_path_factory.mktemp("stages")
    first = train(resolve("nano", SMALL | {"steps": "2"}, out=str(out / "a")))["model"]
    given = SMALL | {"steps": "3", "init": first, "seed": "1"}
    return first, train(resolve("nano", given, out=str(out / "b")))["model"]


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["average", *map(str, arguments)])
    return average.main()


def test_every_weight_is_the_mean(stages, tmp_path, monkeypatch):
    assert run(monkeypatch, *stages, "--share", "0.75", "--out", tmp_path / "mean") == 0
    a, b, mean = (
        load(str(m), device="cpu").system.network.state_dict() for m in (*stages, tmp_path / "mean")
    )
    assert any(not torch.equal(a[k], b[k]) for k in a)
    for name, value in mean.items():  # kept in float32
        wanted = 0.25 * a[name].float() + 0.75 * b[name].float()
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)
    metadata = store.document(tmp_path / "mean")["facts"]
    assert [row["steps"] for row in metadata["history"]] == [2, 3]
    assert metadata["history"][-1]["averaged"] == 0.75
    assert "0.75 of the last" in (tmp_path / "mean" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--share", "1.5"], "from 0 to 1"),
        (["--share", "nan"], "from 0 to 1"),
    ],
)
def test_other_shares_are_refused(stages, tmp_path, monkeypatch, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *stages, *arguments, "--out", tmp_path / "mean")
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_what_is_no_model_is_told(stages, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, stages[0], tmp_path / "none", "--out", tmp_path / "mean")
    assert ended.value.code == 2 and "none" in capsys.readouterr().err


def test_networks_of_other_sizes_are_told(stages, tmp_path, monkeypatch, capsys):
    given = SMALL | {"steps": "1", "init": stages[0], "patch": "2"}
    other = train(resolve("nano", given, out=str(tmp_path / "c")))["model"]
    with pytest.raises(SystemExit):
        run(monkeypatch, stages[0], other, "--out", tmp_path / "mean")
    assert "other sizes" in capsys.readouterr().err


def test_a_model_that_was_not_trained_here_is_told(stages, tmp_path, monkeypatch, capsys):
    bare = shutil.copytree(stages[1], tmp_path / "bare")
    store.set_metadata(bare, store.document(bare)["facts"] | {"history": []})
    with pytest.raises(SystemExit):
        run(monkeypatch, stages[0], bare, "--out", tmp_path / "mean")
    assert "was not trained here" in capsys.readouterr().err
