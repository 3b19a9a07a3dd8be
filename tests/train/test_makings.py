"""Every preset that makes codecs of a folder: fitted, with the use of image tokens told, or trained
first, from where a former run was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everyway.apps import cli
from everyway.checkpoints import codec_folder
from everyway.codecs.cell_vq import CellVQ
from everyway.codecs.image_vae import psnr
from everyway.codecs.image_vq import use_of
from everyway.data.folder import Folder, write_folder
from everyway.data.lattice import Lattice
from everyway.data.sample import to_tensor
from everyway.data.shapes import Shapes
from everyway.generate import load
from everyway.train import codec_image, encoder, fitted_folder, price, stack, text
from everyway.train.config import ConfigError
from everyway.train.fitted_folder import Room

ROOM = Room(side=32, grids=(2, 4, 8, 16), channels=48, length=12, codes=64)
COUNT = 60
OWN = {"batch": 16, "device": "cpu", "precision": "fp32", "steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures of 16x16 pixels with captions of seven words."""
    path = tmp_path_factory.mktemp("own") / "pictures"
    shapes = Shapes(seed=1, size=16, languages=("en",))
    write_folder(path, (replace(shapes.sample(k), record=None) for k in range(COUNT)))
    return path


@pytest.fixture(scope="module")
def pictures(folder) -> torch.Tensor:
    data = Folder(str(folder), 16)
    return to_tensor([data.sample(k).image for k in range(COUNT)])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(price, "STEPS", 2)
    monkeypatch.setattr(price, "ROWS", 8)


def clustered(pictures: torch.Tensor, codes: int) -> CellVQ:
    codec = CellVQ(codes, cell=4, channels=48, power=0.0)
    codec.cluster(pictures)
    return codec


# -- image tokens ---------------------------------------------------------------------------------


def test_codes_are_the_means_of_what_they_stand_for(pictures):
    codec = clustered(pictures, 16)
    latents = codec.cells.encode(pictures).movedim(1, -1).flatten(0, 2)
    tokens = codec.encode(pictures).flatten()
    means = torch.stack([latents[tokens == k].mean(0) for k in range(16)])
    drawn = codec.codes[tokens]
    error, best = (drawn - latents).square().mean(), (means[tokens] - latents).square().mean()
    assert best <= error < 1.02 * best  # the last round's means, whose cells hardly move
    assert torch.equal(codec.codes, clustered(pictures, 16).codes)


def test_more_codes_show_more_and_as_many_as_cells_show_all(pictures):
    shown = []
    for codes in (4, 16, 64):
        codec = clustered(pictures, codes)
        shown.append(float(psnr(codec.decode(codec.encode(pictures)), pictures)))
    assert shown == sorted(shown) and shown[2] > shown[0] + 3
    two = torch.stack([torch.full((3, 16, 16), -0.5), torch.full((3, 16, 16), 0.5)])
    codec = clustered(two, 2)
    assert torch.allclose(codec.decode(codec.encode(two)), two, atol=1e-4)


def test_use_of_codes_is_their_share_and_the_exponent_of_their_entropy():
    found = use_of(torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]]), 6)
    assert found == {"codes_used": 0.5, "perplexity": round(2 ** (0.5 * 2 + 0.5 * 1), 1)}


def test_tokens_of_a_folder_are_as_few_as_serve_and_tell_their_use(folder, pictures):
    made = fitted_folder.fit(str(folder), ROOM, COUNT, ("image_vq", "text"))
    assert [*made] == ["image_vq", "text"]
    image = made["image_vq"]
    assert image.metadata["psnr_db"] >= 24.0
    assert image.settings["codes"] <= ROOM.codes
    unseen = pictures[9::10]
    codes = image.codec.encode(unseen)
    assert image.metadata["codes_used"] == pytest.approx(
        len(codes.unique()) / image.settings["codes"], abs=1e-4
    )
    again = float(psnr(image.codec.decode(codes), unseen))
    assert again == pytest.approx(image.metadata["psnr_db"], abs=0.01)
    line = fitted_folder.described(made)["image"]
    assert f"{image.metadata['codes_used']:.0%} are used there, perplexity" in line


# -- every preset ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, parts",
    [
        ("mini-vq", {"image_vq", "text"}),
        ("nano-versatile", {"image", "text"}),
        ("mini-versatile", {"image", "text"}),
        ("mini-ediffi", {"image", "image_embed", "text"}),
    ],
)
def test_a_preset_is_trained_on_codecs_of_the_folder(preset, parts, folder, tmp_path, quick):
    out = tmp_path / "run"
    config = stack.resolved(preset, {"data": str(folder), **OWN}, str(out), None)
    plan = stack.planned(config)
    assert plan.codecs == "fitted" and plan.steps == 2
    assert "new" in [of for of, _ in plan.about["image"] + plan.about["text"]]
    assert not stack.run(plan)["stopped"]
    assert codec_folder.metadata(out / "codecs").keys() == parts
    model = load(str(out / "model"), device="cpu")
    said = next(folder.glob("*.txt")).read_text("utf-8").strip()
    drawn = model.generate(kind="text-to-image", text=said, steps=2)[0].image
    assert drawn.size == (16, 16)
    if "image-to-text" in model.system.tasks:
        known = {word for path in folder.glob("*.txt") for word in path.read_text("utf-8").split()}
        named = model.generate(kind="image-to-text", image=drawn, steps=2)[0].text
        assert {*named.split()} <= known


def test_the_price_tells_the_use_of_codes(folder, tmp_path, quick, capsys):
    words = ["train", "mini-vq", "--data", str(folder), "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--dry-run", "--set", "batch=8", "--set", "precision=fp32"]) == 0
    told = capsys.readouterr().err
    assert "codec of mini-vq: " in told
    assert "dB on pictures it was not fitted to; of the codes " in told


# -- trained codecs -------------------------------------------------------------------------------

STAGES = {"codec-image": codec_image, "encoder": encoder, "text": text}


@pytest.fixture
def short(monkeypatch, quick):
    """Trainings of codecs of four steps, saved after each, and measured on little."""
    seen = range

    def few(*numbers):
        at = seen(*numbers)
        return at if len(at) <= 20 else at[:20]

    for name, module in STAGES.items():
        monkeypatch.setattr(module, "range", few, raising=False)
        own = {"steps": 4, "batch": 4, "budget_s": 0.0, "save_every_s": 0.0, "log_every": 1}
        monkeypatch.setitem(module.TRAININGS, name, {**module.TRAININGS[name], **own})


def test_codecs_are_trained_first_and_go_on_where_they_were_killed(folder, tmp_path, short):
    def asked(name: str):
        own = {"data": str(folder), "codecs": "trained", **OWN}
        return stack.resolved("nano", own, str(tmp_path / name), None)

    plan = stack.planned(asked("whole"))
    assert plan.codecs == "trained" and [*plan.stages] == [*STAGES]
    assert plan.settings().model.codecs == str(tmp_path / "whole" / "codecs")
    stack.run(plan)

    class Killed(Exception):
        pass

    def until(last: int):
        """Ends at so many steps, of all trainings together."""
        steps = []

        def progress(done) -> None:
            steps.append(done.step)
            if len(steps) == last:
                raise Killed

        return progress

    plan = stack.planned(asked("killed"))
    for last in (3, 4):  # in the first training, and in the second
        with pytest.raises(Killed):
            stack.run(plan, until(last))
        plan = stack.planned(asked("killed"))
    assert codec_folder.metadata(tmp_path / "killed" / "codecs").keys() == {"image"}
    stack.run(plan)
    for part in ("image", "image_embed", "text"):
        files = (tmp_path / run / "codecs" / f"{part}.safetensors" for run in ("whole", "killed"))
        one, other = map(load_file, files)
        assert all(torch.equal(one[name], other[name]) for name in one), part
    one, other = (load(str(tmp_path / run / "model"), device="cpu") for run in ("whole", "killed"))
    assert one.hash == other.hash
    facts = codec_folder.metadata(tmp_path / "whole" / "codecs")
    assert {part: own["steps"] for part, own in facts.items()} == dict.fromkeys(facts, 4)


def test_shares_of_a_budget_hold_all_that_a_training_takes(folder, tmp_path, short):
    own = {"data": str(folder), "codecs": "trained", **OWN}
    config = stack.resolved("nano", own, str(tmp_path / "run"), 2000.0)
    plan = stack.planned(config)
    shares = stack.PRESETS["nano"].trained
    assert plan.total == pytest.approx(2000, rel=0.02) or plan.settings().steps == 2
    for training, share in shares.items():
        assert 0.8 * share * 2000 < plan.stages[training] < share * 2000
    assert plan.seconds["codecs"] == pytest.approx(2000 * sum(shares.values()), rel=0.01)
    line = dict(plan.lines()["time"])[""]
    assert f"(codec-image {price.spell(plan.stages['codec-image'])}, encoder " in line
    with pytest.raises(ConfigError, match="leaves no time to learn in; give"):
        stack.planned(stack.resolved("nano", own, str(tmp_path / "run"), 1.0))


def test_codecs_that_cannot_be_made_as_asked_are_refused(folder, tmp_path):
    with pytest.raises(
        ConfigError, match="codecs=trained is for nano, mini, small, mini-vq; leave"
    ):
        stack.resolved(
            "nano-versatile", {"data": str(folder), "codecs": "trained"}, str(tmp_path), None
        )
    with pytest.raises(ConfigError, match="codecs=fitted needs pictures of your own; give --data"):
        stack.resolved("mini", {"codecs": "fitted"}, str(tmp_path), None)


def test_fitted_codecs_are_asked_for_by_name(folder, tmp_path, quick):
    own = {"data": str(folder), "codecs": "fitted", **OWN}
    plan = stack.planned(stack.resolved("mini", own, str(tmp_path / "run"), None))
    assert plan.codecs == "fitted" and [of for of, _ in plan.about["image"]] == ["new"]
    assert json.loads(json.dumps(plan.model_dump()))["stages"] == {}


def test_tokens_at_hand_that_serve_are_taken_along(tmp_path, monkeypatch):
    """Scenes of the kind that the shipped codes were made of; others are tried on little."""
    little = Room(side=48, grids=(8,), channels=16, length=24, codes=16)
    monkeypatch.setitem(stack.PRESETS, "mini-vq", replace(stack.PRESETS["mini-vq"], room=little))
    scenes = Lattice(seed=3)
    rows = ((k, scenes.sample(k)) for k in range(24))
    pairs = (replace(s, record=None, captions=s.captions[:1], key=str(k)) for k, s in rows)
    write_folder(tmp_path / "scenes", pairs)
    own = {"data": str(tmp_path / "scenes"), **OWN}
    config = stack.resolved("mini-vq", own, str(tmp_path / "run"), None)
    choice = stack.chosen(config, tmp_path)
    assert choice.codecs == "shipped" and [of for of, _ in choice.about["image"]] == [
        "codec of mini-vq"
    ]
    made = stack.prepared(stack._with_codecs(config, choice.folder))
    shipped = load("mini-vq", device="cpu", dtype="fp32").system
    for name, codec in made.codecs.items():
        theirs = shipped.codecs[name].state_dict()
        assert all(torch.equal(value, theirs[k]) for k, value in codec.state_dict().items()), name
