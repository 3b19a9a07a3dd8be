"""Versatile Diffusion's modules on formula-filled weights, and its goldens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from everyway.contracts import Context
from everyway.layouts import versatile
from everyway.nets.multiflow import Maps, MultiFlow, MultiFlowConfig, Vectors
from formula import filled, normal

FOLDER = Path(__file__).parent / "golden" / "versatile"
TINY = MultiFlowConfig(
    data=(Maps(name="image", channels=4), Vectors(name="text", shape=(40,))),
    contexts={"image": 48, "text": 48},
    dim=32,
    heads=4,
)
SMALL = replace(TINY, multipliers=(1, 1), depth=1, attending=1)
"""For what has no golden."""
INPUTS = {
    "x_image": (2, 4, 16, 16),
    "x_text": (2, 40),
    "c_image": (2, 17, 48),
    "c_image2": (2, 17, 48),
    "c_text": (2, 9, 48),
    "u_text": (2, 9, 48),
}


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {k: file[k] for k in file.files}


def given(name: str) -> Tensor:
    return normal(f"input:{name}", INPUTS[name])


def context(name: str, **fields) -> Context:
    return Context(tokens=given(name), **fields)


def time(numbers, batch: int | None = None) -> Tensor:
    """The network's numbers 0 .. 999 of times -> t."""
    made = (torch.as_tensor(numbers, dtype=torch.float64) + 1) / 1000
    return made if batch is None else made.expand(batch)


def own(network: MultiFlow) -> dict[str, Tensor]:
    return {k.removeprefix("parts."): v for k, v in network.state_dict().items()}


def fill(network: MultiFlow) -> MultiFlow:
    """With every tensor filled under its released name."""
    fill_in_place(network)
    return network.eval()


@torch.no_grad()
def fill_in_place(network: MultiFlow) -> None:
    """All tensors that are not on the meta device, one by one."""
    for name, tensor in versatile.to_file(own(network), versatile.RELEASED).items():
        if not tensor.is_meta:
            tensor.copy_(filled(name, tuple(tensor.shape)))


def compare(file: dict, key: str, value: Tensor, atol: float) -> None:
    """A value against the golden's, whole or with its stride, and its statistics."""
    found = value.detach().float().numpy()
    if key in file:
        np.testing.assert_allclose(found.reshape(file[key].shape), file[key], rtol=0, atol=atol)
    else:
        assert found.shape == tuple(file[f"{key}__shape"])
        part = found.ravel()[:: int(file[f"{key}__flat_stride"])]
        np.testing.assert_allclose(part, file[f"{key}__flat_sub"], rtol=0, atol=atol)
    stats = [found.mean(dtype=np.float64), found.std(dtype=np.float64), np.abs(found).max()]
    np.testing.assert_allclose(stats, file[f"{key}__stats"], rtol=0, atol=atol)


def own_tokens(count: int, marks: tuple[str, ...]) -> str:
    """The JSON of a tokenizer of the words w0, w1, ..., `count` with its last ids, the marks."""
    words = [f"w{n}" for n in range(count - len(marks))]
    added = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    spec = {
        "version": "1.0",
        "model": {
            "type": "WordLevel",
            "vocab": {w: n for n, w in enumerate([*words, *marks])},
            "unk_token": "w0",
        },
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "added_tokens": [
            {"id": len(words) + n, "content": mark, "special": True, **added}
            for n, mark in enumerate(marks)
        ],
    }
    return json.dumps(spec)
