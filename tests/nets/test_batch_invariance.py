"""A batch is one call, and each of its samples has the bits that it has alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from everyway.contracts import Context, Query, rows
from everyway.generate import Model, Preview, load
from everyway.job import Job, Sample
from everyway.nets import batch_invariance
from everyway.nets.batch_invariance import (
    CURVES,
    Apart,
    Look,
    batch_invariant,
    invariant,
    lone,
)
from everyway.request import GenerateRequest

SIZES = (2, 3, 5, 16)
OTHER = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oldest": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
}
"""Processors as this one can act them: what libraries are told to do without."""


class Odd(nn.Module):
    """All kinds of layers, of sizes that no kernel likes; counts its calls."""

    def __init__(self, width: int = 37) -> None:
        super().__init__()
        self.first, self.after = nn.Conv2d(3, 13, 3, padding=1), nn.Conv2d(13, 13, 3, stride=2)
        self.norm, self.time = nn.GroupNorm(1, 13), nn.Linear(11, 13)
        self.text, self.out = nn.Linear(5, 13), nn.Linear(13, width)
        self.calls: list[int] = []

    def forward(self, states, times, contexts=None, keep=None):
        x = states["image"]
        self.calls.append(len(x))
        time = times["image"].float()[:, None] * torch.arange(11)
        told = self.time(F.silu(time.cos()))
        x = self.after(F.silu(self.norm(self.first(x)))).flatten(2).mT + told[:, None]  # (B, N, 13)
        x = x + self.text(contexts["text"].tokens).mean(1, keepdim=True)
        x = x + F.scaled_dot_product_attention(*3 * (x[:, None],))[:, 0]
        x = x + torch.sigmoid(x @ x.mT) @ x
        return {"image": self.out(F.gelu(x, approximate="tanh"))}


def query(batch: int, width: int = 9) -> Query:
    generator = torch.Generator().manual_seed(batch)
    normal = partial(torch.randn, generator=generator)
    return Query(
        states={"image": normal(batch, 3, width, width)},
        times={"image": torch.rand(batch, generator=generator, dtype=torch.float64)},
        contexts={"text": Context(tokens=normal(batch, 2, 5))},
    )


def alone(network: nn.Module, asked: Query) -> Tensor:
    """Every sample by itself, in memory of its own."""
    ones = [placed_anew(rows(asked, slice(k, k + 1))) for k in range(asked.batch)]
    return torch.cat([network(one.states, one.times, one.contexts)["image"] for one in ones])


def placed_anew(asked: Query) -> Query:
    return tree_map_only(Tensor, torch.clone, asked)


@torch.inference_mode()
def calls_of_a_second_batch(network: nn.Module, batch: int) -> list[int]:
    """Of two of one look, both of which are checked to have the bits of their samples."""
    asked = query(batch)
    for _ in range(2):
        asked = replace(asked, states={name: 1 - x for name, x in asked.states.items()})
        expected = alone(network, asked)
        network.calls.clear()
        assert torch.equal(batch_invariant(network, asked)["image"], expected)
    return network.calls


@pytest.mark.parametrize("batch", SIZES)
def test_a_batch_has_the_bits_of_each_sample(batch):
    """In one call, unless a kernel of this processor has ways of its own."""
    assert calls_of_a_second_batch(Odd(), batch) in ([batch], [1] * batch)


class Leaky(Odd):
    """What a sample is depends on the others of its batch."""

    def forward(self, states, times, contexts=None, keep=None):
        return {n: x - x.mean() for n, x in super().forward(states, times, contexts).items()}


def test_a_network_that_cannot_be_called_whole_is_asked_sample_by_sample():
    assert calls_of_a_second_batch(Leaky(), 3) == [1, 1, 1]


def test_a_long_call_is_made_sample_by_sample(monkeypatch):
    monkeypatch.setattr(batch_invariance, "LONG", 0.0)
    assert calls_of_a_second_batch(Odd(), 3) == [1, 1, 1]


def test_a_trial_finds_the_products_that_are_not_invariant():
    """Of a product made in two ways by the number of its rows, as of one that is made in one."""

    def look(*shape: int) -> Look:
        return Look.of(torch.empty(shape))

    def uneven(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x.double(), weight.double()).float() if len(x) > 1 else F.linear(x, weight)

    def even(x: Tensor, weight: Tensor) -> Tensor:
        return (x[..., None, :] * weight).sum(-1)

    for made, expected in ((uneven, False), (even, True)):
        batch_invariance.PRODUCTS[made] = 1
        try:
            assert invariant(made, (look(4, 8, 32), look(16, 32)), 1) == expected
        finally:
            del batch_invariance.PRODUCTS[made]


@torch.inference_mode()
@pytest.mark.parametrize("size", [1, 45, 64, 1080, 6400])
def test_functions_of_single_numbers_have_the_bits_of_each_sample(size):
    x = torch.rand(16, 1, size)
    for curve in CURVES:
        more = (1.7,) if "pow" in curve.__name__ else ()
        with Apart(16):
            made = curve(x, *more)
        expected = [curve(x[k : k + 1].clone(), *more) for k in range(16)]
        assert torch.equal(made, torch.cat(expected)), curve


@torch.inference_mode()
@pytest.mark.parametrize("shift", [0, 3, 5])
def test_a_sample_set_apart_lies_as_it_does_alone(shift):
    x = torch.randn(3, 2, 7, 5 + shift)[..., shift:].transpose(1, 2)
    own = lone(x, slice(1, 2))
    assert torch.equal(own, x[1:2]) and own.stride() == x[1:2].stride()
    assert own.data_ptr() % 64 == x.data_ptr() % 64 == 4 * shift


# -- shipped models -------------------------------------------------------------------------------

TEXTS = {"nano": ("a red ring", "a blue cross")}
MODELS = ("nano", "mini", "mini-vq", "mini-versatile", "mini-ediffi")


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def samples_of(model: Model, task: str, guidance: float | None) -> list[Sample]:
    """Sixteen of one task, of two texts and two pictures in turn."""
    given, made = model.system.given(model.system.tasks[task]), []
    for seed in range(16):
        text = TEXTS.get(model.name, ("a large fox on blue", "a small pizza"))[seed % 2]
        asked = GenerateRequest(
            kind=task,
            steps=2,
            seed=seed,
            text=text if "text" in given else None,
            images=("picture",) if "image" in given else (),
            guidance=guidance,
        )
        files = {"picture": picture(seed % 2)} if "image" in given else {}
        made += model.samples(Job(request=asked, files=files))
    return made


def states_of(model: Model, samples: list[Sample]) -> list[list[Tensor]]:
    """The last states of every stage, of each sample."""
    stages = {e.stage: e.progress.states for e in model.batch(samples) if isinstance(e, Preview)}
    made = [x for states in stages.values() for x in states.values()]
    return [[x[k] for x in made] for k in range(len(samples))]


def check(model: Model, sizes: tuple[int, ...] = SIZES) -> None:
    """All tasks, guided and not in turn, bit for bit."""
    for number, task in enumerate(model.system.tasks):
        samples = samples_of(model, task, guidance=1.0 if number % 2 else None)
        own = [states_of(model, [one])[0] for one in samples[: max(sizes)]]
        for size in sizes:
            made = states_of(model, samples[:size])
            for expected, found in zip(own, made):
                assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), task


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_of_a_shipped_model_has_the_bits_that_it_has_alone(name):
    model = load(name)
    check(model)
    assert all(batch_invariance._SOUND[model.system.network].values())  # batches were called whole


def test_so_it_has_with_two_threads(nano):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check(nano, sizes=(3,))
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER)
def test_so_it_has_on_other_processors(name):
    words = ["-m", "pytest", "-q", __file__, "-m", "not slow", "-p", "no:cacheprovider"]
    ended = subprocess.run([sys.executable, *words], env={**os.environ, **OTHER[name]})
    assert ended.returncode == 0
