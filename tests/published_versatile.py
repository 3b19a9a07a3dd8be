"""Versatile Diffusion's modules on formula-filled weights, and its goldens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from everyway.checkpoints.tensor_files import held
from everyway.contracts import Context
from everyway.layouts import versatile
from everyway.layouts.table import LAYOUTS
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


AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 16,
}
_TOWER = {
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "projection_dim": 48,
}
VISION = {**_TOWER, "image_size": 28, "patch_size": 14}
TEXT = {**_TOWER, "vocab_size": 99, "max_position_embeddings": 77}
BERT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 61}
BERT |= {"intermediate_size": 64, "max_position_embeddings": 128}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 1, "n_positions": 40, "vocab_size": 67}


def write_tiny_files(folder: Path) -> tuple[Path, dict[str, str]]:
    """(the network's file, part -> path of what it lacks), as they were released, of a small
    network: for 16x16 pictures with heads=4 and drawn_size=8."""
    settings = {
        "autoencoder-kl": {"autoencoder": AUTOENCODER},
        "optimus": {"encoder": BERT, "decoder": GPT2, "dim": 40},
        "clip-image-context": {"vision": VISION},
        "clip-text-context": {"text": TEXT},
    }
    network = versatile.to_file(own(MultiFlow(SMALL)), versatile.RELEASED)
    released = {"network": {k: filled(k, tuple(v.shape)) for k, v in network.items()}}
    for row in LAYOUTS:
        if row.name in settings:
            shapes = row.expected(settings[row.name])
            entries = row.to_theirs({k: held(torch.zeros(s)) for k, s in shapes.items()})
            released[row.part] = {k: filled(k, e.shape) for k, e in entries.items()}
    released["text"].pop("decoder.lm_head.weight")  # tied
    for part, tensors in released.items():
        save_file(tensors, folder / f"{part}.safetensors")
    tables = {
        "tokenizer": own_tokens(99, ("<|startoftext|>", "<|endoftext|>")),
        "word_pieces": own_tokens(61, ("[CLS]", "[SEP]")),
        "reader": own_tokens(64, ()),
    }
    for name, spec in tables.items():
        (folder / f"{name}.json").write_text(spec, encoding="utf-8")
    parts = {part: str(folder / f"{part}.safetensors") for part in released if part != "network"}
    return folder / "network.safetensors", parts | {n: str(folder / f"{n}.json") for n in tables}
