"""U-ViT as a whole: the released settings, and models out of published layouts that draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from everyway.apps import cli
from everyway.checkpoints import store
from everyway.codecs.image_vae import STABLE_DIFFUSION, ImageVAE
from everyway.generate import Model, load
from everyway.layouts import convert
from everyway.layouts import uvit as uvit_layouts
from everyway.process.schedules import DiscreteVP, LinearVP
from everyway.request import RequestError
from everyway.systems import uvit
from published import CLIP_TOKENS, network_shapes, read, stored, tiny_autoencoder, tiny_clip

STEPS, LABEL, NULL = 3, 4, 10
SIZES = dict(size=8, patch=2, dim=64, depth=4, heads=1)
NETWORKS = {
    "class": dict(channels=4, classes=NULL + 1),
    "text": dict(channels=4, context=(77, 64)),
    "pixels": dict(channels=3, classes=NULL, time_scale=999.0),
    "alone": dict(channels=3, time_scale=999.0),
}

# -- settings ---------------------------------------------------------------------------------

RELEASED = {  # schedule, sampler, steps, guidance, with a null class
    "cifar10_small": (LinearVP, "em-sde", 1000, 1.0, False),
    "celeba64_small": (LinearVP, "em-sde", 1000, 1.0, False),
    "imagenet64_mid": (LinearVP, "dpm-fast", 50, 1.0, False),
    "imagenet64_large": (LinearVP, "dpm-fast", 50, 1.0, False),
    "imagenet256_large": (LinearVP, "dpm-fast", 50, 1.4, True),
    "imagenet256_huge": (DiscreteVP, "dpm++fast", 50, 1.4, True),
    "imagenet512_large": (LinearVP, "dpm-fast", 50, 1.7, True),
    "imagenet512_huge": (DiscreteVP, "dpm++fast", 50, 1.7, True),
    "mscoco_small": (DiscreteVP, "dpm++fast", 50, 2.0, False),
    "mscoco_small_deep": (DiscreteVP, "dpm++fast", 50, 2.0, False),
}
CODECS = {
    "image": {"autoencoder": STABLE_DIFFUSION, "fold": 1, "scale": 0.18215},
    "text": {"vocabulary": ["fox"]},
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_settings(name):
    """The whole system is made of them at its full size, without memory for its weights."""
    config = uvit.full(uvit.PRESETS[name], CODECS)
    schedule, sampler, steps, guidance, null = RELEASED[name]
    with store.unfilled():
        system = uvit.build(config)
    assert (system.sampler, system.steps, system.guidance) == (sampler, steps, guidance)
    assert isinstance(system.processes["image"].schedule, schedule)
    given = {"i": "class-to-image", "m": "text-to-image"}.get(name[0], "")
    assert set(system.tasks) == (
        {given} if name.startswith("imagenet64") else {given, "image"} - {""}
    )
    if given == "class-to-image":
        assert config.null_class is null and system.conditions["label"].codec.classes == 1000
    sides = {"cifar10": 32, "celeba64": 64, "imagenet64": 64, "imagenet512": 512}
    assert config.image_size == sides.get(name.partition("_")[0], 256)
    with store.unfilled():
        assert uvit.build(system.config).config == system.config


# -- models out of files ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The authors' files, tiny."""
    out = tmp_path_factory.mktemp("files")
    for name, options in NETWORKS.items():
        shapes = network_shapes(uvit.network(**SIZES, **options), uvit_layouts.KEYMAP)
        torch.save(read(stored(shapes)), out / f"{name}.pth")
    torch.save(tiny_autoencoder(), out / "autoencoder_kl.pth")
    tiny_clip("text").save_pretrained(out / "clip-text")
    (out / "tokenizer.json").write_text(CLIP_TOKENS, encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def models(files, tmp_path_factory) -> dict[str, Model]:
    """Converted, kept as folders, and loaded again."""
    image = {"image": str(files / "autoencoder_kl.pth")}
    text = {"text_states": str(files / "clip-text"), "tokenizer": str(files / "tokenizer.json")}
    parts = {"class": image, "text": image | text}
    made = {}
    for name in NETWORKS:
        folder = tmp_path_factory.mktemp("kept") / name
        convert.save(convert.open_model(str(files / f"{name}.pth"), parts=parts.get(name)), folder)
        made[name] = load(str(folder), device="cpu")
    return made


def pixels(result) -> np.ndarray:
    return np.array(result.image)


def test_a_class_is_drawn_with_guidance_by_the_null_class(models, monkeypatch):
    model, asked = models["class"], []
    forward = model.system.network.forward

    def spy(states, times, contexts=None, keep=None):
        asked.append(contexts["label"].tokens.tolist())
        return forward(states, times, contexts, keep)

    monkeypatch.setattr(model.system.network, "forward", spy)
    (made,) = model.generate(kind="class-to-image", label=LABEL, steps=STEPS)
    assert made.image.size == (64, 64) == (model.image_size,) * 2
    assert made.metadata["forwards"] == 2 * STEPS and asked == [[LABEL], [NULL]] * STEPS
    asked.clear()
    model.generate(kind="class-to-image", label=LABEL, steps=STEPS, guidance=1.0)
    assert asked == [[LABEL]] * STEPS
    asked.clear()
    model.generate(kind="image", steps=STEPS)
    assert asked == [[NULL]] * STEPS


def test_guidance_and_class_bear_on_the_picture(models):
    draw = models["class"].generate
    one = dict(kind="class-to-image", label=LABEL, steps=STEPS)
    first = pixels(draw(**one)[0])
    assert np.array_equal(first, pixels(draw(**one, guidance=1.4)[0]))
    for other in (one | {"label": 5}, one | {"guidance": 1.0}, one | {"seed": 1}):
        assert np.any(first != pixels(draw(**other)[0])), other


@pytest.mark.parametrize("name", ["class", "text"])
def test_sample_k_does_not_depend_on_its_batch(models, name):
    given = {"class": dict(kind="class-to-image", label=LABEL)}
    given["text"] = dict(kind="text-to-image", text="a red fox")
    together = models[name].generate(**given[name], steps=STEPS, n=3)
    for k, result in enumerate(together):
        (alone,) = models[name].generate(**given[name], steps=STEPS, seed=k)
        assert np.array_equal(pixels(result), pixels(alone))


def test_a_model_without_a_null_class_refuses_guidance(models):
    draw = models["pixels"].generate
    one = dict(kind="class-to-image", label=NULL - 1, steps=STEPS)
    (made,) = draw(**one)
    assert made.metadata["forwards"] == STEPS and made.image.size == (8, 8)
    with pytest.raises(ValueError, match="no null label.*guidance of 1") as caught:
        draw(**one, guidance=1.5)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="cannot do 'image'; it does class-to-image"):
        draw(kind="image", steps=STEPS)
    with pytest.raises(ValueError, match="class 10 is unknown; give a number from 0 to 9"):
        draw(**one | {"label": NULL})


def test_the_command_draws_a_class_or_says_why_not(files, tmp_path, capsys):
    words = ["generate", "image", "--model", str(files / "pixels.pth"), "--label", "3"]
    words += ["--steps", "3", "--out", str(tmp_path / "made"), "--quiet"]
    assert cli.main(words) == 0 and (tmp_path / "made" / "00000.png").is_file()
    capsys.readouterr()
    assert cli.main([*words, "--guidance", "2"]) == 2
    err = capsys.readouterr().err
    assert "no null label" in err and err.count("\n") == 1


def test_a_model_that_is_told_nothing(models):
    model = models["alone"]
    assert (model.system.sampler, model.system.steps) == ("em-sde", 1000)
    (made,) = model.generate(kind="image", steps=STEPS)
    assert made.metadata["forwards"] == STEPS and made.image.size == (8, 8)


def test_a_text_is_told_as_clip_states_it(models, files):
    system = models["text"].system
    given = system.contexts({"text": ["a fox", ""]})["text"].tokens
    ids = torch.full((1, 77), 9)
    ids[0, :4] = torch.tensor([8, 0, 1, 9])  # start, a, fox, end; padding is the end mark
    expected = tiny_clip("text")(input_ids=ids).last_hidden_state
    torch.testing.assert_close(given[:1], expected, rtol=0, atol=2e-6)
    null = system.null_contexts(3)["text"].tokens
    torch.testing.assert_close(null, given[1:].expand(3, -1, -1), rtol=0, atol=2e-6)
    assert system.guidance == 2.0


def test_latents_of_text_models_are_scaled_as_they_were_trained(models):
    """0.23010, where the autoencoder's own scale is 0.18215."""
    picture = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    states = [models[n].system.encode({"image": picture})["image"] for n in ("class", "text")]
    torch.testing.assert_close(states[1], states[0] * 0.23010 / 0.18215, rtol=1e-5, atol=0)
    codec = models["text"].system.codecs["image"]
    plain = ImageVAE(**models["class"].system.config["codec_config"]["image"])
    plain.load_state_dict(codec.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(
            codec.decode(states[1]), plain.eval().decode(states[0]), rtol=0, atol=1e-5
        )


def test_what_a_model_lacks_is_told(files):
    clip = "hf:openai/clip-vit-large-patch14"
    needed = ["image=autoencoder_kl.pth", f"text_states={clip}", f"tokenizer={clip}"]
    said = " ".join(f"--part {part}" for part in needed)
    with pytest.raises(ValueError, match=f"lacks codecs; give them: {said}"):
        convert.restored(convert.open_model(str(files / "text.pth")))
    assert uvit.missing_parts(uvit.full(uvit.PRESETS["imagenet64_mid"])) == []
    with pytest.raises(ValueError, match="schedule 'sine' is unknown; choose one of linear"):
        uvit.UViTSystemConfig(network={}, schedule="sine")
