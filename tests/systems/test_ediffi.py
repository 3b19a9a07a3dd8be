"""eDiff-I as a whole: any subset of its contexts, each with weight and guidance, and a training."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everyway.checkpoints import store
from everyway.codecs.plain import Pixels
from everyway.contracts import Context, flat
from everyway.data.shapes import Shapes
from everyway.errors import UsageError
from everyway.generate import Model
from everyway.objective import contexts_of, losses, total
from everyway.process.schedules import EDMSigma
from everyway.process.training_times import LogNormal
from everyway.request import RequestError
from everyway.sampling.noise import StreamNoise
from everyway.systems import ediffi
from everyway.train import sources
from everyway.train.config import resolve
from everyway.train.latents import encode
from everyway.train.sources import Data
from published import CLIP_TOKENS, TEXT_VOCABULARY
from small_t5 import T5, T5_TOKENS

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("t5", "clip_text", "style")
TEXT = "a red circle"


@pytest.fixture(scope="module")
def model():
    """ediffi-nano with weights none of which are zero."""
    generator = torch.Generator().manual_seed(0)
    system = ediffi.build(ediffi.nano(Data("shapes", 0).words))
    for p in system.network.parameters():
        p.data = 0.6 * torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5
    return Model(name="nano", hash="", system=system, metadata={"image_size": 16})


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(Shapes(seed=3).sample(0).image)


def drawn(model, **settings):
    """(pixels, forwards) of two steps."""
    wanted = {"kind": "text-to-image", "steps": 2, "sampler": "euler", "guidance": 1, **settings}
    wanted |= {"text": TEXT} if wanted["kind"] == "text-to-image" else {}
    (result,) = model.generate(**wanted)
    return np.asarray(result.image), result.metadata["forwards"]


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ediffi.NETWORKS)
def test_published_systems(name):
    """Made whole at their sizes, without memory for their weights, and again from plain data."""
    config = ediffi.published(name, {"t5": T5_TOKENS, "clip_text": CLIP_TOKENS})
    with store.unfilled():
        system = ediffi.build(json.loads(json.dumps(asdict(config))))
    large = name != "ediffi-base"
    assert (system.sampler, system.steps) == ("kutta3", 10 if large else 25)
    assert system.processes["image"].schedule == EDMSigma(rho=3.0 if large else 6.0)
    assert ediffi.image_size(config) == 256
    given = ("text", "low_res") if large else ("text",)
    assert system.given(system.tasks["text-to-image"]) == given
    shapes = {n: system.null_contexts(1)[n].tokens.shape[1:] for n in NAMES}
    assert shapes == {"t5": (113, 4096), "clip_text": (78, 768), "style": (1, 768)}


def test_super_resolution_is_guided_by_its_text_alone():
    config = ediffi.published("ediffi-sr256", {"t5": T5_TOKENS, "clip_text": CLIP_TOKENS})
    with store.unfilled():
        tasks = ediffi.build(config).tasks
    (branch,) = tasks["text-to-image"].guidance
    assert branch.without == ("t5", "clip_text") and tasks["image"].guidance == ()


def test_published_training():
    assert LogNormal() == ediffi.Training().times
    assert dict(ediffi.Training().drop) == {"t5": 0.25, "clip_text": 0.2, "style": 0.9}
    with pytest.raises(UsageError, match="give codecs=DIR"):
        resolve("ediffi-nano-root", {"preset": "ediffi-base"})


def test_an_unknown_noise_level_is_refused():
    with pytest.raises(UsageError, match="c_noise 'sigma' is unknown"):
        ediffi.EDiffIConfig(network={}, codecs={}, c_noise="sigma")


# -- dropping ---------------------------------------------------------------------------------


def test_each_context_is_dropped_by_itself(model):
    """At the published rates, and all of them in 4.5 of 100 samples."""
    count, noise = 40_000, StreamNoise(torch.Generator().manual_seed(0))
    system = model.system
    ones = {n: c.null().context().tokens for n, c in system.conditions.items()}
    batch = flat({n: Context(tokens=torch.ones(count, *x.shape[1:])) for n, x in ones.items()})
    contexts = contexts_of(system, batch, noise, ediffi.SHARES, count)
    lost = {n: contexts[n].tokens.flatten(1).eq(0).all(1) for n in NAMES}
    kept = {n: contexts[n].tokens.flatten(1).eq(1).all(1) for n in NAMES}
    for name, share in ediffi.SHARES.items():
        assert torch.equal(lost[name], ~kept[name])
        assert float(lost[name].double().mean()) == pytest.approx(share, abs=0.01)
    for one, other in combinations(NAMES, 2):
        both = float((lost[one] & lost[other]).double().mean())
        assert both == pytest.approx(ediffi.SHARES[one] * ediffi.SHARES[other], abs=0.01)
    assert float(torch.stack([*lost.values()]).all(0).double().mean()) == pytest.approx(
        0.25 * 0.2 * 0.9, abs=0.005
    )


# -- weights, subsets, guidance ---------------------------------------------------------------


def test_weight_zero_is_the_null_bit_for_bit(model, picture):
    plain, _ = drawn(model)
    styled, _ = drawn(model, given={"style": picture})
    assert not np.array_equal(plain, styled)
    none, _ = drawn(model, given={"style": picture}, context_weights={"style": 0})
    assert np.array_equal(plain, none)
    nothing, _ = drawn(model, context_weights={"t5": 0, "clip_text": 0})
    alone, _ = drawn(model, kind="image")
    assert np.array_equal(nothing, alone)


def test_every_subset_draws_its_own(model, picture):
    subsets = [s for k in range(4) for s in combinations(NAMES, k)]
    made = [
        drawn(
            model,
            given={"style": picture},
            context_weights={name: float(name in subset) for name in NAMES},
        )[0].tobytes()
        for subset in subsets
    ]
    assert len({*made}) == len(subsets) == 8


def test_strength_of_a_style(model, picture):
    """From none to all of it the picture moves on; the embedding itself is scaled."""
    made = [
        drawn(model, given={"style": picture}, context_weights={"style": s})[0].astype(float)
        for s in (0, 0.25, 0.5, 1)
    ]
    gaps = [np.abs(made[0] - other).mean() for other in made]
    assert gaps == sorted(gaps) and gaps[1] > 0
    system = model.system
    nulls = system.null_contexts(1)
    given = {n: Context(tokens=torch.ones_like(c.tokens)) for n, c in nulls.items()}
    half = system.weighed(given, nulls, {"style": 0.5})["style"]
    assert torch.equal(half.tokens, torch.full_like(half.tokens, 0.5))


def test_a_guidance_of_its_own(model, picture):
    """Of the one context there is, it is the guidance of all; of several each has a forward."""
    only = {"t5": 1, "clip_text": 0}
    one, _ = drawn(model, context_weights=only, guidance=3)
    other, _ = drawn(model, context_weights=only, context_guidance={"t5": 3})
    assert np.array_equal(one, other)
    given = {"style": picture}
    every, calls = drawn(model, given=given, guidance=3, context_guidance={"style": 2, "t5": 4})
    assert calls == 2 * 4  # all of it, without the rest (clip_text), the style, t5
    both, calls = drawn(model, given=given, guidance=3, context_guidance={"style": 1})
    assert calls == 2 * 2  # a weight of 1 is off
    assert not np.array_equal(every, both)


def test_what_cannot_be_weighed(model, nano):
    with pytest.raises(RequestError, match="context 'stile' is unknown; did you mean 'style'"):
        drawn(model, context_weights={"stile": 1})
    with pytest.raises(RequestError, match="needs style"):
        drawn(model, context_weights={"style": 1})
    with pytest.raises(RequestError, match="is given no contexts"):
        drawn(nano, context_weights={"style": 1})


# -- training ---------------------------------------------------------------------------------


def test_recipe_of_the_base():
    """Its optimisation as published, with times and dropping that are so by default."""
    config = resolve(str(RECIPES / "ediffi-base.toml"))
    own = config.optim
    assert (config.model.preset, config.steps, config.batch) == ("ediffi-base", 500_000, 2048)
    assert (own.optimiser, own.lr, own.weight_decay) == ("adamw", 1e-4, 0.01)
    assert (own.beta1, own.beta2, own.ema) == (0.9, 0.999, 0.9999)
    assert config.run.gradient_checkpointing


def test_small_t5_and_clip_train_it(tmp_path):
    """Encoders of transformers in place of plain codes: cached once, their padding masked."""
    config = ediffi.nano(("a",))
    network = config.network | {
        "contexts": [
            {"name": "t5", "length": 12, "dim": 16},
            {"name": "clip_text", "length": 7, "dim": 16, "summary": "first"},
            {"name": "style", "length": 1, "dim": 8, "summary": "mean"},
        ]
    }
    clip = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    text = clip | dict(
        vocab_size=TEXT_VOCABULARY, projection_dim=16, bos_token_id=8, eos_token_id=9,
        pad_token_id=9,
    )  # fmt: skip
    codecs = dict(config.codecs) | {
        "t5": {"kind": "T5States", "tokenizer": T5_TOKENS, "text": T5, "length": 12},
        "clip_text": {
            "kind": "ClipSentence", "tokenizer": CLIP_TOKENS, "text": text, "length": 7,
        },
        "style": {
            "kind": "ImageEmbedding",
            "vision": clip | dict(image_size=32, patch_size=16, projection_dim=8),
        },
    }  # fmt: skip
    system = ediffi.build(replace(config, network=network, codecs=codecs))
    data = Shapes(seed=0)
    cache = encode(tmp_path, data.sample, lambda samples: sources.encode(system, samples), count=6)
    batch = cache.rows(torch.arange(6), torch.linspace(0, 0.9, 6))
    noise = StreamNoise(torch.Generator().manual_seed(0))
    contexts = contexts_of(system, batch, noise, {"style": 0.5}, 6)
    mask = contexts["t5"].mask
    assert mask.dtype == torch.bool and mask[:, 0].all() and not mask.all()
    times = LogNormal().draw(noise, {"image": system.processes["image"]}, 6)
    found = losses(system, {"image": batch["image"]}, times, noise, contexts)["image"]
    total(system, {"image": found}).backward()
    assert found.isfinite().all()
    assert all(p.grad is not None for p in system.network.parameters())


def test_it_trains_and_draws(run, picture):
    """From the command line, on built-in data; what is saved draws with and without a style."""
    picture.save("fox.png")
    sets = ("steps=3", "cache=32", "batch=8")
    train = ("train", "ediffi-nano-root", *(part for s in sets for part in ("--set", s)))
    code, out, err = run(*train, "--out", "run")
    assert code == 0, err
    assert np.isfinite(json.loads(out.splitlines()[-1])["losses"]["image"])
    draw = ("generate", "image", "--text", TEXT, "--model", "run", "--steps", "2")
    assert run(*draw)[0] == 0
    code, out, err = run(*draw, "--style", "fox.png", "--style-strength", "0.5")
    assert code == 0, err
    made = [np.asarray(Image.open(f"out/{k:05d}.png")) for k in range(2)]
    assert made[0].shape == (16, 16, 3)
    code, _, err = run(*draw, "--style-strength", "0.5")
    assert code == 2 and "--style-strength is of --style" in err


def test_its_picture_is_plain_pixels(model):
    assert isinstance(model.system.modalities["image"].codec, Pixels)
