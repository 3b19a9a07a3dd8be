"""A folder becomes a model in one command: codecs that serve it, a price, and what was paid for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from everyway.apps import cli
from everyway.checkpoints import codec_folder
from everyway.codecs.image_vae import psnr
from everyway.codecs.pca import PCA
from everyway.data.faults import FolderError
from everyway.data.folder import Folder, write_folder
from everyway.data.sample import Sample, to_tensor
from everyway.data.shapes import Shapes
from everyway.generate import load
from everyway.lora import LoRAError
from everyway.train import fitted_folder, price, stack, train
from everyway.train.config import ConfigError, TrainConfig, parsed, resolve
from everyway.train.fitted_folder import Room
from everyway.train.folder import locked
from everyway.train.price import Price
from everyway.train.suited import suited

ROOM = Room(side=32, grids=(2, 4), channels=48, length=12)
COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures of 32x32 pixels with captions of seven words."""
    path = tmp_path_factory.mktemp("own") / "pictures"
    shapes = Shapes(seed=1, size=32, languages=("en",))
    write_folder(path, (replace(shapes.sample(k), record=None) for k in range(COUNT)))
    return path


@pytest.fixture(scope="module")
def fitted(folder):
    return fitted_folder.fit(str(folder), ROOM, COUNT)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(price, "STEPS", 5)
    monkeypatch.setattr(price, "ROWS", 16)


def asked(folder: Path, out: Path, budget_s: float | None = None, **overrides) -> TrainConfig:
    own = {"data": str(folder), "batch": 8, "device": "cpu", "precision": "fp32", **overrides}
    return stack.resolved("nano", own, str(out), budget_s)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load(str(out / "model"), device="cpu").system.network.state_dict()


# -- codecs ---------------------------------------------------------------------------------------


def test_codecs_are_as_small_as_the_folder_allows(fitted, folder):
    image = fitted["image"]
    assert image.metadata["psnr_db"] >= fitted_folder.FINE
    assert image.settings["channels"] < ROOM.channels
    fewer = Room(side=32, grids=(4,), channels=image.settings["channels"] - 1, length=12)
    if image.settings["side"] // image.settings["cell"] == 4:
        made = fitted_folder.fit(str(folder), fewer, COUNT)["image"]
        assert made.metadata["psnr_db"] < fitted_folder.FINE


def test_of_few_pictures_all_but_one_are_fitted_to(folder):
    """The one kept apart tells how little so few say of others."""
    data = Folder(str(folder), 32)
    pictures = to_tensor([data.sample(k).image for k in range(4)])
    codec = fitted_folder._image(pictures, 32, ROOM).codec
    assert shown(codec, pictures) > 20
    one = fitted_folder._image(pictures[:1], 32, ROOM).codec
    assert shown(one, pictures[:1]) > 20


def shown(codec, pictures: torch.Tensor) -> float:
    return float(psnr(codec.decode(codec.encode(pictures)), pictures))


def test_psnr_by_channels_is_that_of_so_many_axes():
    torch.manual_seed(0)
    vectors = torch.randn(300, 12) @ torch.randn(12, 12) / 10
    whole = PCA(12, 8)
    whole.fit(vectors)
    few = PCA(12, 3)
    few.fit(vectors)
    error = (few.inverse(few(vectors)) - vectors).square().mean() / 4
    found = fitted_folder.psnr_by_channels(whole, vectors)
    assert found[2] == pytest.approx(-10 * torch.log10(error).item(), abs=1e-3)
    assert (found.diff() > 0).all()


def test_every_caption_comes_back_word_by_word(fitted, folder):
    captions = [p.read_text("utf-8").strip() for p in sorted(folder.glob("*.txt"))]
    codec = fitted["text"].codec
    assert codec.decode(codec.encode(captions)) == captions
    noisy = codec.encode(captions)
    noisy = noisy + 0.3 * torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))
    assert np.mean([a == b for a, b in zip(codec.decode(noisy), captions)]) > 0.95


def test_too_long_a_caption_is_counted_and_no_hindrance(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), np.uint8)
    said = ["a red bird"] * 11 + ["one two three four five six seven eight nine"]
    write_folder(tmp_path, [Sample(image=p, captions=(c,)) for p, c in zip(pixels, said)])
    text = fitted_folder.fit(str(tmp_path), replace(ROOM, length=5), 12)["text"]
    assert (text.settings["length"], text.metadata["too_long"]) == (5, 1)
    assert torch.isfinite(text.codec.table).all()


def test_a_second_language_has_numbers_of_its_own(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), np.uint8)
    both = [
        Sample(image=p, captions=("a bird", "새 한 마리"), key=str(k)) for k, p in enumerate(pixels)
    ]
    write_folder(tmp_path, both)
    made = fitted_folder.fit(str(tmp_path), ROOM, 12)
    fitted_folder.write(made, tmp_path / "codecs")
    codec = made["text"].codec
    own = codec.table[codec.tokens.encode(["bird", "새"])[:, 0], -1]
    assert own.tolist() == [-1.0, 1.0]
    config = resolve("nano", {"codecs": str(tmp_path / "codecs")})
    assert config.model.system(None).config["languages"] == ["en", "ko"]


# -- whether they serve ---------------------------------------------------------------------------


def test_what_a_model_cannot_say_is_named(folder):
    pixels = np.zeros((96, 96, 3), np.uint8)
    samples = [Sample(image=pixels, captions=("a handwritten zero",))]
    found = suited(load("mini", device="cpu").system, samples, ["a handwritten zero"])
    assert found.exact == 0
    assert "handwritten" in found.unknown
    mini = suited(load("mini", device="cpu").system, samples, ["a big fox on blue, please"])
    assert mini.exact == 0 or "please" not in mini.unknown
    nano = suited(load("nano", device="cpu").system, [], ["a red circle left on white"])
    assert (nano.exact, nano.unknown) == (1.0, ())


def test_a_model_whose_codecs_are_hopeless_is_refused_with_the_way_out(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), np.uint8)
    said = ("a handwritten zero",)
    write_folder(
        tmp_path / "d", [Sample(image=p, captions=said, key=str(k)) for k, p in enumerate(noise)]
    )
    config = stack.resolved(
        "mini", {"data": str(tmp_path / "d"), "init": "mini"}, str(tmp_path / "run"), None
    )
    with pytest.raises(ConfigError, match="0 of 6 captions come back.*leave init out"):
        stack.planned(config)
    assert not (tmp_path / "run").exists()


# -- the price ------------------------------------------------------------------------------------


def test_a_dry_run_tells_the_price_and_leaves_nothing(folder, tmp_path, quick, capsys):
    words = ["train", "nano", "--data", str(folder), "--out", str(tmp_path / "run"), "--dry-run"]
    assert cli.main([*words, "--set", "batch=8", "--set", "precision=fp32"]) == 0
    out, told = capsys.readouterr()
    found = json.loads(out)
    assert found["steps"] * 8 == 96_000
    assert found["seconds"] > found["steps"] * found["step_s"] * 0.9
    for name in ("data", "image", "text", "model", "training", "time", "memory", "disk", "expect"):
        assert f"\n{name} " in f"\n{told}"
    assert [*tmp_path.iterdir()] == []


def test_captions_that_are_all_too_long_are_refused(folder):
    with pytest.raises(FolderError, match="the shortest has .* reads 2; shorten them"):
        fitted_folder.fit(str(folder), replace(ROOM, length=3), COUNT)


def test_a_folder_that_is_gone_is_named_as_that(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / price.FILE).touch()
    with pytest.raises(ConfigError, match="is unknown; .* or give a folder"):
        asked(tmp_path / "gone", tmp_path / "run")


def test_words_that_a_folder_never_said_are_told(fitted):
    codec = fitted["text"].codec
    known = codec.decode(codec.encode(["a circle"]))[0]
    assert codec.remarks(known) == []
    assert codec.remarks(f"A zebra {known}, two zebras") == ["not understood: zebra, two, zebras"]


def test_a_price_disturbs_no_other_training_and_names_a_folder_that_cannot_be(folder, tmp_path):
    """Of two commands on one run folder the second is refused, before and after the price."""
    place = tmp_path / "run" / "rehearsal"
    place.mkdir(parents=True)
    plan = Price(
        asked={},
        config=asked(folder, tmp_path / "run").model_dump(),
        **dict.fromkeys(("step_s", "processor_s", "steps", "rows", "parameters"), 1),
        **{"seconds": {}, "memory": 1, "disk": 1, "threads": 1},
    )
    with locked(tmp_path / "run"):
        for do in (lambda: stack.planned(asked(folder, tmp_path / "run")), lambda: stack.run(plan)):
            with pytest.raises(ConfigError, match="another training runs in"):
                do()
        assert place.exists() and not (tmp_path / "run" / price.FILE).exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no folder to write to; choose another"):
        stack.planned(asked(folder, tmp_path / "file" / "run"))


def test_a_budget_holds_everything_and_a_small_one_is_refused(folder, tmp_path, quick):
    plan = stack.planned(asked(folder, tmp_path / "run", budget_s=600.0))
    assert plan.total == pytest.approx(600, rel=0.02)
    assert 0 < plan.settings().budget_s < 600
    assert plan.settings().model.codecs == str(tmp_path / "run" / "codecs")
    with pytest.raises(ConfigError, match="leaves no time to learn in; give"):
        stack.planned(asked(folder, tmp_path / "run", budget_s=0.1))


def test_what_was_chosen_stands_in_the_run_folder(folder, tmp_path, quick, monkeypatch):
    config = asked(folder, tmp_path / "run", steps=4)
    plan = stack.planned(config)
    stack.run(plan)
    whole = weights(tmp_path / "run")
    facts = codec_folder.metadata(tmp_path / "run" / "codecs")
    assert facts.keys() == {"image", "image_embed", "text"}
    # another run, stopped after two steps and after its codecs were lost, ends the same
    plan = stack.planned(asked(folder, tmp_path / "other", steps=2))
    stack.run(plan)
    (tmp_path / "other" / "codecs" / "text.facts.json").unlink()
    monkeypatch.setattr(price, "rehearsed", None)  # nothing is measured again
    again = stack.planned(asked(folder, tmp_path / "other", steps=4))
    assert again.settings().steps == 4
    stack.run(again)
    other = weights(tmp_path / "other")
    assert all(torch.equal(whole[name], other[name]) for name in whole)
    drawn = load(str(tmp_path / "run" / "model")).generate(kind="image", steps=2)[0].image
    assert drawn.size == (32, 32)


def test_a_run_that_was_begun_without_a_price_goes_on_as_it_was(folder, tmp_path):
    own = {"data": str(folder), "batch": 8, "device": "cpu", "precision": "fp32", "steps": 1}
    train(resolve("nano", own, out=str(tmp_path)))
    again = asked(folder, tmp_path, steps=2)
    assert again.model.times.shift == 2.0  # the preset's, and not that of fitted codecs
    assert not stack.is_planned(again, read=True)
    assert train(again)["step"] == 2


def test_a_damaged_price_is_named_as_that(folder, tmp_path, quick):
    stack.run(stack.planned(asked(folder, tmp_path / "run", steps=1)))
    again = asked(folder, tmp_path / "run", steps=2)
    (tmp_path / "run" / "price.json").write_text("{")
    with pytest.raises(ConfigError, match=r"price.json, by which .* is damaged \(it is no JSON\)"):
        stack.is_planned(again, read=False)
    (tmp_path / "run" / "price.json").write_text('{"asked": {}}')
    with pytest.raises(ConfigError, match=r"is damaged \(config is missing\); get it back, or"):
        stack.planned(again)
    (tmp_path / "run" / "state.safetensors").unlink()
    assert price.held(again) is None  # it has not begun, and is measured anew


def test_a_price_counts_what_is_learned_from(folder, quick, tmp_path):
    """Not what has no caption, unless that is asked for, and each picture's mirror image."""
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    (own / "metadata.jsonl").unlink()
    for path in sorted(own.glob("*.txt"))[:10]:
        path.unlink()
    (own / "lone.txt").write_text("a red circle\n")
    settings = ({}, {"flip": "true", "unpaired": 0.5})
    plans = [stack.planned(asked(own, tmp_path / "run", steps=3, **more)) for more in settings]
    pairs = COUNT - 10
    assert [plan.rows for plan in plans] == [pairs, 2 * pairs + 11]
    told = [plan.lines()["data"][0][1] for plan in plans]
    assert told[0].endswith("; 10 are left out (everyway data check says why)")
    assert told[1].endswith("; alone 10 pictures and 1 captions")


def test_a_price_tells_how_much_a_lora_is(quick, tmp_path):
    own = {"init": "nano", "device": "cpu", "precision": "fp32", "cache": 16, "steps": 3}
    plan = stack.planned(resolve("nano", {**own, "lora": 2}, out=str(tmp_path)))
    assert plan.lines()["model"][0][1].endswith("million of them a LoRA of rank 2")
    assert plan.disk_line(free=plan.disk - 1).endswith(": make room, or choose another --out")
    assert plan.disk_line(free=10**12).endswith("MB, 1e+03 GB are free")
    line = plan.model_copy(update={"trained": plan.parameters - 1}).model_line("it", 200)
    assert line.endswith("a LoRA of rank 200, more than it is beside: leave lora out or lower it")
    with pytest.raises(LoRAError, match="lora=4096 is a higher rank than any layer of this"):
        stack.planned(resolve("nano", {**own, "lora": 4096}, out=str(tmp_path)))


# -- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [16, 64, 256])
def test_schedules_count_samples_whatever_the_batch(batch):
    own = {"samples": "96000", "warmup_samples": "6400", "ema_samples": "16000"}
    config = resolve("nano", {**own, "batch": str(batch)})
    assert config.steps * batch == 96_000
    assert config.optim.warmup * batch == 6400
    assert config.optim.ema ** (16_000 / batch) == pytest.approx(0.5)
    assert parsed(config.model_dump()) == config


def test_the_last_of_steps_and_samples_counts():
    assert resolve("nano", {"steps": "7"}).steps == 7
    assert parsed({"steps": 7}, {"samples": 640}).steps == 10
    assert parsed({"samples": 640}, {"steps": 7}).steps == 7
    assert parsed({"warmup_samples": 640}, {"optim.warmup": 7}).optim.warmup == 7
    assert parsed({"ema_samples": 640}, {"ema": 0.5}).optim.ema == 0.5


# -- several processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_measure_and_train_as_one(folder, tmp_path):
    own = ("batch=8", "steps=3", "device=cpu", "precision=fp32", "lr=1e-4")
    for out, count in (("one", 1), ("two", 2)):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        command += ["--standalone", "-m", "everyway.apps.cli", "train", "nano", "--data", folder]
        command += ["--out", tmp_path / out, *(w for word in own for w in ("--set", word))]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr.count("\ntime ") == 1
    one, two = (weights(tmp_path / out) for out in ("one", "two"))
    assert all((one[name] - two[name]).abs().max() < 1e-5 for name in one)
