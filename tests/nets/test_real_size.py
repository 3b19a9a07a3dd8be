"""The published networks at full size give the authors' numbers on formula-filled weights.

The goldens are subsampled (their strides are in the meta), with statistics of the whole outputs.
Each test holds one network in float32; the largest has 952M parameters (3.8 GB).

    pytest -m slow tests/nets/test_real_size.py
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from everyway.contracts import Context
from everyway.layouts import unidiffuser as unidiffuser_layouts
from everyway.layouts import uvit as uvit_layouts
from everyway.layouts.keymap import Table, to_ours, to_theirs
from everyway.nets.uvit import UViT, UViTConfig
from everyway.systems import uvit
from formula import FOLDER, compare, filled, golden, normal

REAL = FOLDER.with_name("uvit_real")
PRESETS = ("cifar10_small", "mscoco_small", "imagenet256_large")
HUGE = (0.180349, 1.163189, 3.806087)
"""Of the output of imagenet256_huge, whose elements are in no golden."""
OURS = {"img": "image", "clip_img": "image_embed", "text": "text"}


def filled_network(config: UViTConfig, table: Table, parameters: int) -> UViT:
    """The network with its authors' names filled one by one, so that it is in memory once."""
    with torch.device("meta"):
        network = UViT(config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    shapes = to_theirs({k: tuple(v.shape) for k, v in network.state_dict().items()}, table)
    made = to_ours({k: filled(k, shape) for k, shape in shapes.items()}, table)
    network.load_state_dict(made, assign=True)
    return network.eval()


def given(entry: dict) -> Tensor:
    return normal(entry["key"], tuple(entry["shape"]))


def compare_whole(meta: dict, arrays: dict, key: str, value: Tensor) -> None:
    """Every stored element, and mean, standard deviation and absolute maximum of all of them."""
    assert list(value.shape) == meta["outputs"][key]["shape"]
    compare(arrays, key, value, meta["outputs"][key]["stride"], atol=1e-5)
    whole = value.double()
    stats = [float(v) for v in (whole.mean(), whole.std(correction=0), whole.abs().max())]
    difference = np.abs(np.array(stats) - arrays[f"stats.{key}"])
    assert (difference <= (1e-6, 1e-6, 1e-5)).all(), difference


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_uvit(preset):
    meta, arrays = golden(f"real_uvit_{preset}", REAL)
    config, inputs, contexts = uvit.PRESETS[preset], meta["inputs"], {}
    network = filled_network(config, uvit_layouts.KEYMAP, meta["params"])
    if "y" in inputs:
        contexts["label"] = Context(tokens=torch.tensor(inputs["y"]))
    if "context" in inputs:
        contexts["text"] = Context(tokens=given(inputs["context"]))
    t = torch.tensor(inputs["timesteps"], dtype=torch.float64) / config.time_scale
    with torch.inference_mode():
        out = network({"image": given(inputs["x"])}, {"image": t}, contexts)
    compare_whole(meta, arrays, "eps", out["image"])


@pytest.mark.slow
def test_uvit_huge():
    """The largest U-ViT, given its null class: mean, standard deviation and absolute maximum."""
    config, name = uvit.PRESETS["imagenet256_huge"], "real_uvit_imagenet256_huge"
    network = filled_network(config, uvit_layouts.KEYMAP, 500_832_016)
    state, null = normal(f"input:{name}:x", (1, 4, 32, 32)), Context(tokens=torch.tensor([1000]))
    with torch.inference_mode():
        t = torch.tensor([0.5], dtype=torch.float64)
        out = network({"image": state}, {"image": t}, {"label": null})["image"].double()
    stats = [float(v) for v in (out.mean(), out.std(correction=0), out.abs().max())]
    difference = np.abs(np.array(stats) - HUGE)
    assert (difference <= (1e-6, 1e-6, 1e-5)).all(), difference


@pytest.mark.slow
@pytest.mark.parametrize("version", [0, 1])
def test_unidiffuser(version):
    meta, arrays = golden(f"real_unidiffuser_v{version}", REAL)
    config, inputs = unidiffuser_layouts.published(version=version), meta["inputs"]
    network = filled_network(config, unidiffuser_layouts.KEYMAP, meta["params"])
    times = {
        clock: torch.tensor(inputs[key], dtype=torch.float64) / config.time_scale
        for clock, key in (("image", "t_img"), ("text", "t_text"))
    }
    contexts = {}
    if version == 1:
        contexts["data_type"] = Context(tokens=torch.tensor(inputs["data_type"]))
    with torch.inference_mode():
        out = network({o: given(inputs[t]) for t, o in OURS.items()}, times, contexts)
    for theirs, ours in OURS.items():
        compare_whole(meta, arrays, theirs, out[ours])
