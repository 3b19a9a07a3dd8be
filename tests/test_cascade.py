"""A cascade draws at its last size in one request; each stage works alone; tiles make any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from everyway import library, upscale
from everyway.checkpoints import store
from everyway.generate import Model, Preview, Result, load
from everyway.process import intervals
from everyway.process.training_times import LogNormal
from everyway.request import GenerateRequest, RequestError
from everyway.systems import cascade, ediffi, ensemble

WORDS = ("a", "red", "blue", "circle", "left", "right", "on", "white")
TEXT = "a red circle left on white"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder: a base of 16 pixels and a stage of 32, whose networks do something."""
    torch.manual_seed(5)
    base, stage = (ediffi.build(make(WORDS)) for make in (ediffi.nano, ediffi.nano_sr))
    system = cascade.assembled(base, {"sr32": stage})
    for network in (system.network, system.systems["sr32"].network):
        for p in network.parameters():
            p.data += 0.02 * torch.randn_like(p)
    out = tmp_path_factory.mktemp("cascade") / "model"
    library.save(out, system, {"image_size": 16, "name": "nano-cascade"})
    return out


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def alone(model):
    """The stage as a model of its own."""
    stage = model.system.systems["sr32"]
    return Model(name="sr", hash="0", system=stage, metadata={"image_size": 32})


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_one_request_draws_at_the_last_size(model):
    events = list(model.run(GenerateRequest(kind="text-to-image", text=TEXT, steps=2, seed=3)))
    (made,) = [e for e in events if isinstance(e, Result)]
    previews = [e for e in events if isinstance(e, Preview)]
    assert made.image.size == (32, 32)
    assert [e.system for e in previews] == [""] * 2 + ["sr32"] * 4
    assert previews[-1].done == 1 and previews[-1].stages == 2
    frame, _ = model.frame(previews[-1].progress, system="sr32")
    assert frame["image"].size == (32, 32)


def test_a_cascade_is_its_stages_one_after_the_other(model, alone):
    """The base alone, then the stage alone on its picture, at the noise that the cascade draws."""
    settings = {"text": TEXT, "steps": 2, "seed": 3}
    (base,) = model.generate(kind="text-to-image", upscale="none", **settings)
    assert base.image.size == (16, 16)
    (whole,) = model.generate(kind="text-to-image", **settings)
    (again,) = alone.generate(kind="upscale", image=base.image, text=TEXT, seed=3)
    (other,) = alone.generate(kind="upscale", image=whole.image, text=TEXT, seed=3)
    assert again.image.size == whole.image.size == other.image.size
    assert np.abs(pixels(again.image) - pixels(whole.image)).mean() > 0  # other noise
    assert np.abs(pixels(again.image) - pixels(other.image)).mean() > 0  # of another picture


def test_a_sample_is_the_same_in_any_batch(model):
    three = model.generate(kind="text-to-image", text=TEXT, n=3, seed=7, steps=2)
    (last,) = model.generate(kind="text-to-image", text=TEXT, n=1, seed=9, steps=2)
    assert three[2].image.tobytes() == last.image.tobytes()
    assert three[0].image.tobytes() != last.image.tobytes()


def test_a_cascade_is_stored_and_loaded(model, folder, tmp_path):
    assert {"network", "sr32.network"} == set(model.system.components)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", device="cpu")
    settings = {"kind": "text-to-image", "text": TEXT, "steps": 2}
    (a,), (b,) = model.generate(**settings), again.generate(**settings)
    assert a.image.tobytes() == b.image.tobytes()


def test_a_cascade_of_experts_is_written_a_byte_a_weight(model, alone, tmp_path):
    base = replace(model.system, name="ediffi", systems={}, config=dict(model.system.config))
    base.config.pop("cascade")
    experts = ensemble.ensemble(base, intervals.level(1), LogNormal())
    run = {"steps": 3, "batch": 2, "samples": 6, "seconds": 4, "hardware": "a CPU"}
    for name, system in (("base", experts), ("sr", alone.system)):
        history = [{"data": "lattice" if name == "base" else "lattice-fine", **run}]
        library.save(tmp_path / name, system, {"image_size": 16, "history": history})
    loaded = [library.load(tmp_path / name, device="cpu") for name in ("base", "sr")]
    for weights in ("fp32", "int8"):
        library.save_cascade(tmp_path / weights, loaded[0], loaded[1:], weights)
    settings = {"kind": "text-to-image", "text": TEXT, "steps": 2}
    made = [load(tmp_path / w, device="cpu").generate(**settings)[0] for w in ("fp32", "int8")]
    whole, rounded = (pixels(result.image) for result in made)
    assert np.abs(whole - rounded).mean() < 2 < whole.std()
    networks = {"network.E1_0", "network.E1_1", "sr32.network"}
    assert store.document(tmp_path / "int8")["deltas"] == dict.fromkeys(networks, "")
    assert "deltas" not in store.document(tmp_path / "fp32")
    card = (tmp_path / "int8" / "README.md").read_text(encoding="utf-8")
    assert "96x96" in card and "| stage sr32 | lattice-fine | 3 | 2 |" in card


@pytest.mark.parametrize("size", [(16, 16), (20, 10), (31, 17)])
def test_a_picture_becomes_as_large_as_the_stage_draws(model, size):
    given = Image.new("RGB", size, (250, 10, 10))
    (made,) = model.generate(kind="upscale", image=given, steps=2)
    assert min(made.image.size) == 32
    ratio = made.image.width / made.image.height
    assert ratio == pytest.approx(size[0] / size[1], rel=0.3)


def test_a_scale_makes_it_as_much_larger_in_tiles(alone, picture, monkeypatch):
    asked = []
    forward = alone.system.network.forward

    def spy(states, times, contexts=None, keep=None):
        asked.append((states["image"].shape, contexts["low_res"].tokens.shape))
        return forward(states, times, contexts, keep)

    monkeypatch.setattr(alone.system.network, "forward", spy)
    (made,) = alone.generate(kind="upscale", image=picture, scale=4, steps=1, sampler="ddim")
    assert made.image.size == (64, 64)
    assert asked == [((1, 3, 32, 32), (1, 3, 32, 32))] * 9


def test_pictures_of_several_sizes_are_enlarged_in_one_call(alone, picture):
    wide = picture.resize((24, 16))
    made = alone.generate(kind="upscale", image=[picture, wide, picture], steps=1, sampler="ddim")
    sizes = {r.job: r.image.size for r in made}
    assert sizes == {0: (32, 32), 1: (48, 32), 2: (32, 32)}


def test_another_model_is_enlarged_too(model, nano):
    both = nano.with_upscaler(model)
    settings = {"kind": "text-to-image", "text": "a red circle left on white", "steps": 2}
    (plain,) = both.generate(**settings)
    (made,) = both.generate(**settings, upscale="nano-cascade")
    assert plain.image.size == (16, 16) and made.image.size == (32, 32)
    assert made.metadata["upscaler"] == model.name and made.metadata["model"] == nano.name
    pair = both.generate(kind="joint", steps=2, upscale="nano-cascade")[0]
    assert pair.image.size == (32, 32) and pair.text


def test_a_text_of_another_world_is_left_out(model, nano):
    """The stage knows fewer words than the model whose pictures it enlarges."""
    both = nano.with_upscaler(model)
    settings = {"kind": "text-to-image", "steps": 2, "upscale": "nano-cascade"}
    (made,) = both.generate(text="a green ring top on black", **settings)
    assert made.image.size == (32, 32)


def test_what_cannot_be_enlarged_is_told(model, nano, alone, picture):
    with pytest.raises(RequestError, match="enlarges no pictures"):
        nano.generate(kind="upscale", image=picture)
    with pytest.raises(RequestError, match="enlarges no pictures"):
        nano.with_upscaler(nano)
    with pytest.raises(RequestError, match="with_upscaler"):
        nano.generate(kind="image", upscale="other")
    with pytest.raises(RequestError, match="leave --scale out"):
        nano.generate(kind="image", scale=2)
    with pytest.raises(ValueError, match="--scale 2"):
        alone.generate(kind="upscale", image=picture.resize((100, 80)))
    with pytest.raises(ValueError, match="smaller --scale"):
        alone.generate(kind="upscale", image=picture.resize((1000, 80)), scale=10)


def test_sides_are_multiples_of_the_stride(alone):
    assert upscale.larger((100, 57), alone.system, 2) == (192, 112)
    assert upscale.larger((16, 16), alone.system, None) == (32, 32)


def test_commands_make_store_and_use_a_cascade(model, alone, picture, tmp_path, run):
    base = replace(model.system, name="ediffi", systems={}, config=dict(model.system.config))
    base.config.pop("cascade")
    library.save(tmp_path / "base", base, {"image_size": 16})
    library.save(tmp_path / "sr", alone.system, {"image_size": 32})
    picture.save("a.png")
    assert run("cascade", tmp_path / "base", tmp_path / "sr", "--out", "both")[0] == 0
    text = ("--text", TEXT, "--steps", 1, "--sampler", "ddim", "--quiet")
    assert run("generate", "image", "--model", "both", "--out", "o1", *text)[0] == 0
    assert Image.open("o1/00000.png").size == (32, 32)
    assert run("replay", "o1/00000.png")[:2] == (0, "o1/00000.png: the same picture, bit for bit\n")
    assert (
        run("generate", "image", "--model", "both", "--upscale", "none", "--out", "o2", *text)[0]
        == 0
    )
    assert Image.open("o2/00000.png").size == (16, 16)
    assert run("upscale", "a.png", "--model", "both", "--scale", 3, "--out", "o3", *text)[0] == 0
    assert Image.open("o3/00000.png").size == (48, 48)
    nano = ("--model", "nano", "--upscale", "both", "--out", "o4")
    assert run("generate", "image", *nano, *text)[0] == 0
    assert Image.open("o4/00000.png").size == (32, 32)
    assert run("replay", "o4/00000.png")[0] == 0
    code, _, err = run("cascade", tmp_path / "sr", tmp_path / "base", "--out", "no")
    assert code == 2 and "enlarges no pictures" in err


def test_training_is_of_patches_that_lost_something(alone, model):
    from everyway.sampling.noise import PerSampleNoise

    pictures = torch.rand(3, 3, 32, 32) * 2 - 1
    own = ediffi.Training(preset="ediffi-nano-sr", low_res={"patch": 16, "factor": 2.0})
    made = own.prepared(alone.system, {"image": pictures}, PerSampleNoise([1, 2, 3]))
    low = made["context.low_res"]
    assert made["image"].shape == low.shape == (3, 3, 16, 16)
    found = pictures[0].unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert (found == made["image"][0]).flatten(1).all(1).any()
    assert 0 < (low - made["image"]).abs().mean() < 0.6
    assert (
        own.prepared(model.system, {"image": pictures}, PerSampleNoise([1, 2, 3]))["image"]
        is pictures
    )


def test_what_enlarges_is_trained_alone_and_resumed(tmp_path, run, picture):
    settings = ("--set", "cache=64", "--set", "batch=8", "--set", "share=1", "--quiet")
    more = ("--out", tmp_path / "sr", *settings)
    assert run("train", "ediffi-nano-sr", "--set", "steps=2", *more)[0] == 0
    assert run("train", "ediffi-nano-sr", "--set", "steps=4", *more)[0] == 0
    picture.save("a.png")
    made = ("--model", tmp_path / "sr", "--steps", 1, "--sampler", "ddim", "--out", "o")
    assert run("upscale", "a.png", *made)[0] == 0
    assert Image.open("o/00000.png").size == (32, 32)
    code, _, err = run("train", "ediffi-nano-sr", "--set", "patch=64", "--out", "x", *settings)
    assert code == 2 and "larger than the pictures" in err
