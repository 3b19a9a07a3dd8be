"""U-ViTs train: published recipes, every design choice of the paper, classes of folders, texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from everyway.apps.cli import main
from everyway.data.folder import write_folder
from everyway.data.shapes import COLOURS, PLACES, SHAPES, Shapes
from everyway.errors import UsageError
from everyway.generate import load
from everyway.layouts import convert
from everyway.nets.uvit import UViT
from everyway.objective import contexts_of
from everyway.process.times import knot_times
from everyway.sampling.noise import StreamNoise
from everyway.systems import unidiffuser, uvit
from everyway.train import devices, sources, train
from everyway.train.config import ConfigError, TrainConfig, parsed, resolve
from everyway.train.systems import prepared
from published import CLIP_TOKENS, tiny_autoencoder, tiny_clip

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = dict(
    system="uvit", preset="nano", optimiser="adamw", lr=2e-3, times="uniform", warmup=3,
    precision="fp32", cache=64, batch=16, steps=30, log_every=10,
)  # fmt: skip


def small(out: Path, **options) -> TrainConfig:
    return parsed(SMALL, {"out": str(out), **options})


def network_of(config: TrainConfig):
    return config.model.network()


def system_of(config: TrainConfig):
    return config.model.system(sources.Data(config.source.data, config.seed))


def cached(config: TrainConfig):
    devices.joined("cpu")
    system = prepared(config)
    return system, sources.cached(system, config)


# -- recipes ----------------------------------------------------------------------------------

PUBLISHED = {  # parameters, steps, batch, lr, betas, warm-up, share without condition, times
    "uvit-cifar10": (44_255_328, 500_000, 128, 2e-4, (0.99, 0.999), 2500, 0.0, "uniform"),
    "uvit-celeba64": (44_292_228, 500_000, 128, 2e-4, (0.99, 0.99), 5000, 0.0, "uniform"),
    "uvit-imagenet64-mid": (130_940_292, 300_000, 1024, 3e-4, (0.99, 0.99), 5000, 0, "uniform"),
    "uvit-imagenet64-large": (286_827_652, 300_000, 1024, 3e-4, (0.99, 0.99), 5000, 0, "uniform"),
    "uvit-imagenet256-large": (
        286_763_172, 300_000, 1024, 2e-4, (0.99, 0.99), 5000, 0.15, "uniform",
    ),
    "uvit-imagenet256-huge": (500_832_016, 500_000, 1024, 2e-4, (0.99, 0.99), 5000, 0.1, "knots"),
    "uvit-imagenet512-large": (
        286_861_524, 500_000, 1024, 2e-4, (0.99, 0.99), 5000, 0.15, "uniform",
    ),
    "uvit-imagenet512-huge": (500_942_656, 500_000, 1024, 2e-4, (0.99, 0.99), 5000, 0.1, "knots"),
    "uvit-mscoco-small": (44_692_644, 1_000_000, 256, 2e-4, (0.9, 0.9), 5000, 0.1, "knots"),
    "uvit-mscoco-small-deep": (58_345_636, 1_000_000, 256, 2e-4, (0.9, 0.9), 5000, 0.1, "knots"),
}  # fmt: skip


def recipe(name: str) -> TrainConfig:
    return resolve(str(RECIPES / f"{name}.toml"))


def test_every_recipe_is_a_published_one():
    assert {path.stem for path in RECIPES.glob("uvit-*.toml")} == {*PUBLISHED, "uvit-nano"}
    assert {recipe(name).model.preset for name in PUBLISHED} == {*uvit.PRESETS}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe(name):
    c = recipe(name)
    with torch.device("meta"):
        network = UViT(network_of(c))
    own, times = c.optim, c.model.times.distribution
    betas = (own.beta1, own.beta2)
    found = (c.steps, c.batch, own.lr, betas, own.warmup, c.model.drop, times)
    assert (sum(p.numel() for p in network.parameters()), *found) == PUBLISHED[name]
    assert (c.system, own.optimiser, own.weight_decay, own.ema) == ("uvit", "adamw", 0.03, 0.9999)
    assert (own.clip, own.cooldown, c.run.out) == (0, 0, f"runs/{name}")
    discrete = uvit.as_released(network.config.to_json())["schedule"] == "discrete"
    assert (times == "knots") is discrete
    assert bool(c.model.codecs) is (
        network.config.time_scale == 1000 or "256-l" in name or "512" in name
    )


def test_the_page_has_the_figures_of_every_recipe():
    """docs/uvit.md: parameters, rate, betas, warm-up, batch, steps, share, sampler, guidance."""
    text = (RECIPES.parent / "docs" / "uvit.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:8] == "| `uvit-"]
    assert {row[0].strip("`") for row in rows} == {*PUBLISHED}
    units = {"M": 10**6, "K": 10**3}
    for name, count, _, _, rate, warmup, size, drop, sampled, _ in rows:
        c = recipe(name.strip("`"))
        assert abs(int(count[:-1]) * 1e6 - PUBLISHED[name.strip("`")][0]) < 0.51e6
        optim = c.optim
        assert rate == f"{optim.lr * 1e4:.0f}e-4, ({optim.beta1}, {optim.beta2})"
        assert int(warmup) == optim.warmup
        batch, steps = size.split(" x ")
        assert (int(batch), int(steps[:-1]) * units[steps[-1]]) == (c.batch, c.steps)
        assert drop == (f"{c.model.drop:g}" if c.model.drop else "–")
        own = uvit.as_released(network_of(c).to_json())
        guided = f", guidance {own['guidance']:g}" if own["guidance"] > 1 else ""
        assert sampled == f"`{own['sampler']}`, {own['steps']}{guided}", name


def test_times_of_a_discrete_schedule_are_its_knots():
    t = knot_times(StreamNoise(torch.Generator().manual_seed(0)), ("image",), 20_000)["image"]
    numbers = t * 1000
    torch.testing.assert_close(numbers, numbers.round(), rtol=0, atol=1e-9)
    assert set(numbers.round().int().tolist()) == set(range(1, 1001))


# -- design choices ---------------------------------------------------------------------------

CHOICES = {
    "as published": {},
    "skips added": {"skip": "add"},
    "no skips": {"skip": "none"},
    "time in the norms": {"time_conditioning": "norm"},
    "convolution before": {"conv": "before"},
    "no convolution": {"conv": "none"},
    "larger patches": {"patch": 8},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Cached pictures of shapes."""
    return cached(small(tmp_path_factory.mktemp("shapes")))[1]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_design_choice_trains(choice, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "cached", lambda system, config, note: shapes)
    config, losses = small(tmp_path, **CHOICES[choice]), []
    train(config, progress=lambda p: losses.append(p.losses["image"]))
    assert len(losses) == 3 and losses[0] > losses[1] > losses[2], losses
    assert losses[2] < 0.92 * losses[0], losses
    weights = load_file(next((tmp_path / "model").glob("network-*.safetensors")))
    names = {k for k in weights}
    assert ("outs.0.skip_linear.weight" in names) is (choice not in ("skips added", "no skips"))
    assert ("mid.norm_mlp.told.weight" in names) is (choice == "time in the norms")
    tokens = {"larger patches": 5, "time in the norms": 16}.get(choice, 17)
    assert weights["positions"].shape == (1, tokens, 128)
    conv = {"convolution before": 128, "no convolution": None}.get(choice, 3)
    assert weights.get("conv.image.bias", torch.empty(0)).numel() == (conv or 0)


def test_the_choices_are_of_the_network():
    """Where the convolution is, and that a time in the norms bears on every block."""
    states = {"image": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    torch.manual_seed(0)
    network = UViT(network_of(small(Path("run"), time_conditioning="norm", conv="before"))).eval()
    seen = []
    for block in (network.ins[0], network.mid, network.outs[-1]):
        block.register_forward_hook(lambda module, inputs, out: seen.append(out))
    with torch.inference_mode():
        for t in (0.25, 0.75):
            out = network(states, {"image": torch.tensor([t], dtype=torch.float64)})["image"]
            assert out.shape == (1, 3, 16, 16)
    assert all(not torch.equal(seen[i], seen[i + 3]) for i in range(3))
    network.conv["image"].weight.data.zero_()  # then only the bias passes on to the head
    network.conv["image"].bias.data.fill_(0.5)
    with torch.inference_mode():
        out = network(states, {"image": torch.tensor([0.5], dtype=torch.float64)})["image"]
    patches = out.unfold(2, 4, 4).unfold(3, 4, 4)
    assert torch.equal(patches[..., 0, 0, :, :], patches[..., 3, 2, :, :])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"skip": "odd"}, "skip 'odd' is unknown"),
        ({"time_conditioning": "odd"}, "time 'odd' is unknown"),
        ({"conv": "odd"}, "conv is 'odd'; it should be '', 'after', 'before' or 'none'"),
        ({"patch": 3}, "patch is 3; it must divide 16"),
        ({"size": 0, "patch": 5, "preset": "imagenet256_huge"}, "patch is 5; it must divide 32"),
        (
            {"size": 100, "preset": "imagenet256_huge"},
            "size is 100; of latents it is a multiple of 8",
        ),
        ({"preset": "nanoo"}, "preset 'nanoo' is unknown; choose one of nano, "),
        ({"preset": "nano-class"}, "data 'shapes' has no classes; give a folder"),
        ({"preset": "mscoco_small"}, r"codecs='' lacks image=autoencoder_kl.pth, text_states="),
    ],
)
def test_wrong_choices_are_one_line(options, said):
    with pytest.raises(ConfigError, match=said) as caught:
        system_of(small(Path("run"), **options))
    assert "\n" not in str(caught.value)


def test_time_in_the_norms_is_for_one_clock():
    network = unidiffuser.nano(("a",)).network()
    with pytest.raises(ValueError, match="time 'norm' is for one clock"):
        replace(network, time="norm")


# -- classes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Three folders of pictures without captions; the first is all black, the last all white."""
    out = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(("a black", "b grey", "c white")):
        (out / name).mkdir()
        for k in range(8):
            shade = np.full((16, 16, 3), 127 * number, np.uint8)
            Image.fromarray(shade).save(out / name / f"{k}.png")
    return out


def test_classes_are_folders_and_some_are_told_the_null(classes, tmp_path, capsys):
    config = small(tmp_path, preset="nano-class", data=str(classes), drop=0.4)
    losses = []
    train(config, progress=lambda p: losses.append(p.losses["image"]))
    assert losses[-1] < losses[0]
    system, latents = cached(config)
    (part,) = latents.shards
    labels, shades = part["context.label"], part["image"]
    assert len(latents) == 24 and labels[:, 0].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    expected = (labels.float() * 127 / 127.5 - 1)[..., None, None, None].expand(shades.shape)
    torch.testing.assert_close(shades.float(), expected, rtol=0, atol=1e-3)
    assert system.network.config.layout[0].classes == 4
    noise = StreamNoise(torch.Generator().manual_seed(0))
    batch = {"context.label": torch.arange(600) % 3}
    conditioning = contexts_of(system, batch, noise, 0.4, 600)["label"].tokens
    dropped = conditioning == 3
    assert torch.equal(conditioning[~dropped], batch["context.label"][~dropped])
    assert 0.34 < dropped.float().mean() < 0.46
    model = load(str(tmp_path / "model"), device="cpu")
    (made,) = model.generate(kind="class-to-image", label=2, steps=4)
    assert made.image.size == (16, 16) == (model.image_size,) * 2
    assert made.metadata["forwards"] == 2 * 4
    for name in ("c white", "2"):
        (again,) = model.generate(kind="class-to-image", label=name, steps=4)
        assert again.image.tobytes() == made.image.tobytes()
    with pytest.raises(UsageError, match="class d is unknown; choose one of a black, b grey, c w"):
        model.generate(kind="class-to-image", label="d", steps=4)
    out = tmp_path / "out"
    words = ["generate", "image", "--label", "c white", "--steps", "4", "--out", str(out)]
    assert main([*words, "--model", str(tmp_path / "model")]) == 0
    assert Image.open(next(out.glob("*.png"))).tobytes() == made.image.tobytes()
    capsys.readouterr()
    assert main(["models", str(tmp_path / "model")]) == 0
    assert "classes: a black, b grey, c white" in capsys.readouterr().out
    assert main(["models", str(tmp_path / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["a black", "b grey", "c white"]


def test_without_dropped_conditions_there_is_no_null_class(classes, tmp_path):
    config = small(tmp_path, preset="nano-class", data=str(classes), drop=0.0, steps=2, flip=1)
    train(config)
    assert cached(config)[1].shards[0]["image"].shape[:2] == (48, 1)
    model = load(str(tmp_path / "model"), device="cpu")
    assert model.system.network.config.layout[0].classes == 3
    model.generate(kind="class-to-image", label=2, steps=4)
    with pytest.raises(ValueError, match="no null label"):
        model.generate(kind="class-to-image", label=2, steps=4, guidance=2.0)


def test_samples_of_every_class_are_shown_on_the_way(classes, tmp_path):
    config = small(tmp_path, preset="nano-class", data=str(classes), steps=2, sample_every=2)
    train(config)
    assert Image.open(tmp_path / "samples" / "0000002.png").width > 6 * 16


def test_pictures_of_another_size_than_the_preset_has(tmp_path):
    config = small(tmp_path, size=32, steps=2, cache=8, batch=4)
    train(config)
    model = load(str(tmp_path / "model"), device="cpu")
    assert model.image_size == 32 and cached(config)[1].shards[0]["image"].shape[-1] == 32
    assert (
        small(tmp_path, preset="imagenet256_huge", size=512).model.network().layout[-1].size == 64
    )


def test_a_picture_outside_the_folders_of_classes_is_named(classes, tmp_path):
    data = tmp_path / "data"
    (data / "one").mkdir(parents=True)
    for where in (data / "one", data):
        Image.new("RGB", (16, 16)).save(where / "x.png")
    with pytest.raises(ConfigError, match="x has no class; put pictures into a folder a class"):
        train(small(tmp_path / "run", preset="nano-class", data=str(data)))


# -- texts and latents ------------------------------------------------------------------------


@pytest.fixture
def words(monkeypatch) -> tuple[str, ...]:
    """All words of shapes, without reading the captions of two thousand."""
    known = ("a", "on", *SHAPES, *COLOURS, *PLACES)
    monkeypatch.setattr(sources.Data, "words", known)
    return known


def test_a_text_trains_on_words(words, tmp_path):
    losses = []
    config = small(tmp_path, preset="nano-text", drop=0.2)
    train(config, progress=lambda p: losses.append(p.losses["image"]))
    assert losses[-1] < 0.85 * losses[0]
    model = load(str(tmp_path / "model"), device="cpu")
    (made,) = model.generate(kind="text-to-image", text="a red circle left on blue", steps=4)
    assert made.image.size == (16, 16) and made.metadata["forwards"] == 8


def test_latents_and_clip_come_from_a_model_of_codecs(tmp_path, monkeypatch):
    """Of a folder of codecs alone, as the recipes of latents make it."""
    torch.save(tiny_autoencoder(), tmp_path / "autoencoder_kl.pth")
    tiny_clip("text").save_pretrained(tmp_path / "clip")
    (tmp_path / "tokenizer.json").write_text(CLIP_TOKENS, encoding="utf-8")
    parts = {"text_states": tmp_path / "clip", "tokenizer": tmp_path / "tokenizer.json"}
    opened = convert.open_model(
        str(tmp_path / "autoencoder_kl.pth"), parts={k: str(v) for k, v in parts.items()}
    )
    convert.save(opened, tmp_path / "codecs")
    tiny = uvit.network(size=4, patch=2, channels=4, dim=64, depth=2, heads=2, context=(77, 64))
    monkeypatch.setitem(uvit.PRESETS, "tiny", tiny)
    write_folder(tmp_path / "data", (Shapes(seed=3).sample(k) for k in range(4)))
    settings = dict(
        preset="tiny",
        times="knots",
        drop=0.5,
        steps=3,
        batch=4,
        log_every=1,
        gradient_checkpointing=1,
    )
    data = dict(data=str(tmp_path / "data"), codecs=str(tmp_path / "codecs"))
    metadata = train(small(tmp_path / "run", **settings, **data))
    assert metadata["step"] == 3 and metadata["losses"]["image"] > 0
    model = load(metadata["model"], device="cpu")
    assert sources.image_size(model.system) == 32
    own, theirs = model.system.codecs["image"].state_dict(), opened.components["image"]
    assert own.keys() == theirs.keys()
    for name, value in own.items():
        assert torch.equal(value, theirs[name].read(torch.float32)), name
    assert model.image_size == 32 and model.system.guidance == 2.0
    (made,) = model.generate(kind="text-to-image", text="a fox", steps=4)
    assert made.image.size == (32, 32) and made.metadata["forwards"] == 8


@pytest.mark.parametrize(("model", "side"), [("nano", 64), ("mini", 96), ("mini-vq", 96)])
def test_pictures_of_shipped_models_are_read_in_their_size(model, side):
    loaded = load(model, device="cpu")
    assert sources.image_size(loaded.system) == loaded.image_size == side


# -- a condition that no data tells -----------------------------------------------------------


def test_a_unidiffuser_with_a_data_type_trains_on_data_that_tell_none(words, tmp_path, monkeypatch):
    def with_type(self, data):
        return unidiffuser.build(replace(unidiffuser.nano(words), data_type=True))

    monkeypatch.setattr(unidiffuser.Training, "system", with_type)
    rest = {"cache": "16", "batch": "4", "log_every": "1", "steps": "3", "precision": "fp32"}
    metadata = train(resolve("nano", rest, out=str(tmp_path)))
    assert metadata["step"] == 3
    system = prepared(resolve("nano", rest, out=str(tmp_path)))
    conditioning = contexts_of(system, {"image": torch.zeros(4, 3)}, None, 0.1, 4)
    assert conditioning["data_type"].tokens.tolist() == [1] * 4  # the cleaner kind
    config = json.loads((tmp_path / "model" / "config.json").read_text())["config"]["config"]
    assert config["data_type"] is True
