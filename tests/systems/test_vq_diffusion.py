"""VQ-Diffusion end to end at a tiny size: every use, guidance and its nulls, training, cost."""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from everyway.codecs.text_tokens import train_tokens
from everyway.contracts import Context
from everyway.data.emoji import EmojiScenes
from everyway.data.folder import write_folder
from everyway.generate import Model, Preview
from everyway.metrics.report import evaluate
from everyway.nets.token_transformer import TokenTransformerConfig
from everyway.objective import losses
from everyway.process.mask_replace import MaskReplace
from everyway.request import GenerateRequest, RequestError
from everyway.sampling.noise import PerSampleNoise
from everyway.system import System
from everyway.systems import vq_diffusion
from everyway.train import sources
from everyway.train.config import ConfigError, resolve
from everyway.train.latents import encode
from everyway.train.loop import train
from tiny import DECODER, TEXT

CODEC = {
    "encoder": {
        "in_channels": 192,
        "out_channels": 8,
        "down_block_types": ["DownEncoderBlock2D"],
        "block_out_channels": [16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    },
    "decoder": {
        "in_channels": 8,
        "out_channels": 192,
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [16],
        "layers_per_block": 0,
        "norm_num_groups": 4,
    },
    "quantiser": {"kind": "nearest", "codes": 24, "dim": 4},
}
STEPS = 6


@pytest.fixture(scope="module")
def config():
    data = EmojiScenes(seed=1)
    words = train_tokens((c for i in range(4000) for c in data.sample(i).captions), 2000)
    text = {"tokenizer": words, "length": 24, "dim": 16, "text": TEXT, "decoder": DECODER}
    return vq_diffusion.VQDiffusionConfig(network=network(), codec=CODEC, text=text)


def network(condition: str = "text", dim: int = 32, depth: int = 2, labels: int = 0) -> dict:
    """The papers' network as plain data."""
    return TokenTransformerConfig(
        codes=24,
        side=8,
        dim=dim,
        depth=depth,
        heads=2,
        condition=condition,
        text_length=24,
        text_dim=16,
        labels=labels,
        learned_null=condition != "none",
        time="abs",
    ).to_json()


UVIT = vq_diffusion.uvit(side=8, codes=24, text=(24, 16), dim=32, depth=2, heads=2).to_json()


@pytest.fixture(scope="module", params=["transformer", "uvit"])
def model(request, config):
    torch.manual_seed(0)
    if request.param == "uvit":
        config = replace(config, kind="uvit", network=UVIT)
    return sure(vq_diffusion.build(config))


def sure(system: System) -> Model:
    """A random model whose distributions are far from uniform."""
    system.network.eval()
    with torch.no_grad():
        for p in system.network.parameters():
            p.mul_(3)
    metadata = {"image_size": 64, "training": {"data": "emoji"}}
    return Model(name="tiny-vq", hash="0", system=system, metadata=metadata)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("in") / "scene.png"
    Image.fromarray(EmojiScenes(seed=5).sample(0).image).save(path)
    return str(path)


def test_the_config_is_plain_data(config):
    again = vq_diffusion.build(json.loads(json.dumps(vq_diffusion.build(config).config)))
    assert again.config == vq_diffusion.build(config).config
    with pytest.raises(ValueError, match="choose transformer, uvit"):
        replace(config, kind="cnn")
    with pytest.raises(ValueError, match="of 24 codes, the codec of 30"):
        codec = {**CODEC, "quantiser": {**CODEC["quantiser"], "codes": 30}}
        vq_diffusion.build(replace(config, codec=codec))


@pytest.mark.parametrize("kind", ["transformer", "uvit"])
def test_class_to_image(config, kind):
    made = network("class", labels=6)
    if kind == "uvit":
        made = vq_diffusion.uvit(side=8, codes=24, labels=6, dim=32, depth=2, heads=2).to_json()
    system = vq_diffusion.build(replace(config, kind=kind, network=made, text={}))
    model = sure(system)
    assert set(system.tasks) == {"class-to-image", "image"}
    two = [model.generate(kind="class-to-image", label=k, steps=STEPS)[0] for k in (0, 4)]
    assert two[0].metadata["forwards"] == 2 * STEPS
    assert np.any(np.array(two[0].image) != np.array(two[1].image))
    with pytest.raises(ValueError, match="class 5 is unknown; give a number from 0 to 4"):
        model.generate(kind="class-to-image", label=5)


def test_unconditional(config):
    system = vq_diffusion.build(replace(config, network=network("none"), text={}))
    model = Model(name="alone", hash="0", system=system, metadata={"image_size": 64})
    made = model.generate(kind="image", steps=STEPS, truncation=0.86)
    assert made[0].metadata["forwards"] == STEPS and set(system.tasks) == {"image"}


@pytest.mark.parametrize("sampler", ["purity", "ancestral", "fast-stride"])
def test_text_to_image_and_image_alone(model, sampler):
    for settings in ({"kind": "text-to-image", "text": "a fox on blue"}, {"kind": "image"}):
        made = model.generate(**settings, steps=STEPS, sampler=sampler, n=2)
        assert [r.image.size for r in made] == [(64, 64)] * 2
        assert np.any(np.array(made[0].image) != np.array(made[1].image))


def test_sample_k_is_the_same_in_any_batch(model):
    base = {"kind": "text-to-image", "text": "a fox", "steps": STEPS, "sampler": "purity"}
    three, one = model.generate(**base, n=3, seed=0), model.generate(**base, seed=2)
    assert np.array_equal(np.array(three[2].image), np.array(one[0].image))
    del base["text"]
    listed = model.generate(**base, text=["a fox", "a pear", "a fox"])
    assert np.array_equal(np.array(listed[2].image), np.array(one[0].image))


def test_two_forwards_a_guided_step(model):
    def forwards(**settings):
        base = {"kind": "text-to-image", "text": "a fox", "steps": STEPS}
        return model.generate(**base, **settings)[0].metadata["forwards"]

    for sampler in ("purity", "ancestral"):
        assert forwards(sampler=sampler, guidance=3.0) == 2 * STEPS
        assert forwards(sampler=sampler, guidance=1.0) == STEPS
    assert model.generate(kind="image", steps=STEPS)[0].metadata["forwards"] == STEPS
    # 64 tokens, at most 4 a call: 60 of them in calls of 4, then the last step for all
    assert forwards(guidance=1.0, sampler="purity", tokens_per_step=4) > 15


def test_nulls_differ_and_unknown_ones_are_told(model):
    base = {"kind": "text-to-image", "text": "a fox", "steps": STEPS, "guidance": 4.0}
    a, b = (model.generate(**base, null=null)[0].image for null in ("learned", "empty"))
    assert np.any(np.array(a) != np.array(b))
    with pytest.raises(ValueError, match="choose one of learned, empty"):
        model.generate(**base, null="nothing")


def test_truncation_is_a_step_of_its_own(model):
    base = {"kind": "text-to-image", "text": "a fox", "steps": STEPS, "guidance": 1.0}
    made = [model.generate(**base, truncation=r)[0] for r in (1.0, 0.3)]
    assert np.any(np.array(made[0].image) != np.array(made[1].image))
    assert made[0].metadata["forwards"] == made[1].metadata["forwards"] == STEPS


def test_inpainting_keeps_locked_tokens_exactly(model, picture, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 8:64] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    known = model.system.encode({"image": _pixels(picture)})["image"][0].reshape(8, 8)
    free = torch.zeros(8, 8, dtype=torch.bool)
    free[2:5, 1:] = True
    for sampler in ("purity", "ancestral"):
        request = GenerateRequest(
            kind="inpaint",
            images=(picture,),
            mask=str(tmp_path / "mask.png"),
            text="a pear",
            sampler=sampler,
            steps=STEPS,
        )
        events = list(model.run(request))
        seen = [e.progress.states["image"][0].reshape(8, 8) for e in events[:-1]]
        assert all(torch.equal(x[~free], known[~free]) for x in seen)
        assert (seen[-1][free] < 24).all() and (seen[-1][free] != known[free]).any()


def test_image_to_image_from_partly_noised_tokens(model, picture):
    known = model.system.encode({"image": _pixels(picture)})["image"][0]
    shares = []
    for strength in (0.1, 0.9):
        base = {"kind": "image-to-image", "images": (picture,), "strength": strength}
        events = list(model.run(GenerateRequest(**base, sampler="ancestral", steps=20)))
        assert len(events) - 1 == round(20 * strength)
        # the last step draws all tokens anew from what this random network thinks of them
        states = [e.progress.states["image"][0] for e in events[:-2]]
        shares.append(float((states[-1] == known).float().mean()))
    assert shares[0] > 0.7 > shares[1] + 0.3


@pytest.mark.parametrize(
    "sampler", [{"sampler": "purity", "tokens_per_step": 5}, {"sampler": "fast-stride"}]
)
def test_a_picture_from_partly_noised_tokens_does_not_depend_on_its_batch(model, picture, sampler):
    """Every sample has another number of masked tokens, and the steps are the same for all."""
    base = {"kind": "image-to-image", "images": (picture,), "strength": 0.5, "steps": 20}
    together = model.generate(**base, **sampler, n=4, seed=7)
    alone = [model.generate(**base, **sampler, seed=7 + k)[0] for k in range(4)]
    assert [r.image.tobytes() for r in together] == [r.image.tobytes() for r in alone]
    assert {r.metadata["forwards"] for r in together} == {alone[0].metadata["forwards"]}


def test_frames_show_the_tokens_as_they_come(model):
    events = [e for e in model.run(GenerateRequest(kind="image", steps=STEPS))]
    frames = [model.frame(e.progress) for e in events if isinstance(e, Preview)]
    assert len(frames) == STEPS
    heat = [sure["image"] for _, sure in frames]
    assert all(h.shape == (8, 8) and 0 <= h.min() and h.max() <= 1 for h in heat)
    written = [int((h > 0).sum()) for h in heat]
    assert written == sorted(written) and written[0] < 64 and written[-1] == 64
    assert frames[0][0]["image"].size == (64, 64)


def test_what_it_cannot_do_is_one_line(model, picture):
    with pytest.raises(RequestError, match="it does text-to-image, image"):
        model.generate(kind="joint")
    with pytest.raises(RequestError, match="a mask goes with the kind inpaint"):
        GenerateRequest(kind="inpaint", images=(picture,))
    with pytest.raises(RequestError, match="sampler purity"):
        GenerateRequest(kind="image", sampler="ddim", purity_weight=1.0)


def test_evaluation_asks_what_it_can_do(model):
    report = evaluate(model, "scenes", n=1, rows=(), settings={"steps": 2})
    assert {r for r in report["rows"]} == {
        "t2i.one", "t2i.two", "t2i.partial", "t2i.ko.one", "t2i.ko.two", "codec", "classifier",
    }  # fmt: skip
    assert report["protocol"]["sampler"] == "purity" and report["protocol"]["steps"] == 2


def test_purity_costs_what_ancestral_costs(config):
    """As many network calls, and the rest is next to nothing beside a network of some size.

    A busy machine only ever adds to a time, so the least of interleaved times is compared, of as
    many as it takes.
    """
    torch.manual_seed(0)
    system = vq_diffusion.build(replace(config, network=network(dim=160, depth=4)))
    system.network.eval()
    model = Model(name="m", hash="0", system=system, metadata={"image_size": 64})
    model.generate(kind="image", steps=1, n=2)  # a first batch is called sample by sample, too
    forwards: list[str] = []
    system.network.register_forward_hook(lambda *_: forwards.append(sampler))
    took = {"purity": math.inf, "ancestral": math.inf}
    for number in range(40):
        for sampler in took:
            began = time.process_time()
            model.generate(kind="image", sampler=sampler, steps=20, n=2)
            took[sampler] = min(took[sampler], time.process_time() - began)
        if number >= 4 and took["purity"] < 1.05 * took["ancestral"]:
            break
    assert forwards.count("purity") == forwards.count("ancestral") > 0
    assert took["purity"] < 1.05 * took["ancestral"]


def _pixels(path: str) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    return pixels[None].float() / 127.5 - 1


# -- training -----------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch, config):
    """The preset mini-vq at this size."""

    def build(self, data):
        torch.manual_seed(3)
        return vq_diffusion.build(config)

    monkeypatch.setattr(vq_diffusion.Training, "system", build)


SMALL = {"data": "emoji", "cache": "96", "batch": "8", "log_every": "2", "warmup": "2"}


def test_interrupted_training_equals_uninterrupted(tiny, tmp_path):
    def stop(progress):
        if progress.step == 4:
            signal.raise_signal(signal.SIGINT)

    def of(name):
        return resolve("mini-vq", SMALL | {"steps": "8"}, out=str(tmp_path / name))

    train(of("a"))
    assert train(of("b"), progress=stop)["step"] == 4
    train(of("b"))
    a, b = (load_file(tmp_path / n / "state.safetensors") for n in "ab")
    assert a.keys() == b.keys() and "memory.importance.history" in a
    assert all(torch.equal(a[k], b[k]) for k in a.keys() - {"sha256"})
    assert float(a["memory.importance.counts"].sum()) == 64


def test_it_learns_pictures_and_its_null(tiny, config, tmp_path):
    """A few seconds of training beat a blind guess, whose loss is log(codes) a token."""
    overrides = SMALL | {"steps": "60", "cache": "64", "batch": "16", "log_every": "10"}
    out = tmp_path / "run"
    train(resolve("mini-vq", overrides, out=str(out)))
    rows = [json.loads(row) for row in (out / "log.jsonl").read_text().splitlines()]
    first, last = rows[0]["image"], rows[-1]["image"]
    assert last < 0.7 * first
    state = load_file(out / "state.safetensors")
    torch.manual_seed(3)
    fresh = vq_diffusion.build(config).network.null
    assert not torch.equal(state["learner.network.null"], fresh)


def test_importance_is_for_tokens(tmp_path):
    with pytest.raises(ConfigError, match="times is 'importance'; choose 'tasks'"):
        train(resolve("nano", SMALL | {"steps": "2", "times": "importance"}, out=str(tmp_path)))


def test_the_loss_of_a_sample_is_its_own(config, tmp_path):
    system, data = vq_diffusion.build(config), EmojiScenes(seed=1, variants=2)
    made = encode(tmp_path, data.sample, lambda part: sources.encode(system, part), 8)
    assert made.shards[0]["image"].dtype == torch.int16
    assert made.shards[0]["context.text"].shape == (8, 4, 24, 16)
    batch = made.rows(torch.arange(4), torch.zeros(4))
    conditioning = {"text": Context(tokens=batch["context.text"])}
    times = {"image": torch.tensor([0.01, 0.3, 0.6, 1.0], dtype=torch.float64)}
    whole = losses(
        system, {"image": batch["image"]}, times, PerSampleNoise([0, 1, 2, 3]), conditioning
    )
    one = losses(
        system,
        {"image": batch["image"][2:3]},
        {"image": times["image"][2:3]},
        PerSampleNoise([2]),
        {"text": Context(tokens=batch["context.text"][2:3])},
    )
    torch.testing.assert_close(whole["image"][2:3], one["image"])
    assert isinstance(system.processes["image"], MaskReplace)


def test_it_trains_on_a_folder(tiny, tmp_path):
    write_folder(tmp_path / "mine", (EmojiScenes(seed=4).sample(i) for i in range(10)))
    overrides = SMALL | {"steps": "3", "data": str(tmp_path / "mine")}
    metadata = train(resolve("mini-vq", overrides, out=str(tmp_path / "run")))
    assert metadata["step"] == 3
    with pytest.raises(ConfigError, match="give a folder"):
        train(resolve("mini-vq", SMALL | {"data": "nowhere"}, out=str(tmp_path / "other")))
