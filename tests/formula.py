"""Weights and inputs filled by a formula from tensor names, so that goldens need no weights."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from everyway.layouts.keymap import Table, to_ours, to_theirs

FOLDER = Path(__file__).parent / "golden" / "uvit"


def normal(key: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 of `shape` from the CRC-32 of `key`."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return torch.randn(tuple(shape), generator=generator)


def filled(key: str, shape: tuple[int, ...]) -> Tensor:
    """The value of the tensor the authors call `key`."""
    t = normal(key, shape)
    if not key.endswith("weight"):
        return 0.1 * t
    if len(shape) == 1:
        return 1 + 0.1 * t
    return t * (1.0 / math.sqrt(math.prod(shape[1:])))


def fill(network: nn.Module, table: Table) -> nn.Module:
    """The network with every tensor filled under its authors' name."""
    theirs = to_theirs(network.state_dict(), table)
    made = {k: filled(k, tuple(v.shape)) for k, v in theirs.items()}
    network.load_state_dict(to_ours(made, table))
    return network.eval()


def golden(name: str, folder: Path = FOLDER) -> tuple[dict, dict[str, np.ndarray]]:
    """(meta, arrays) of one golden file."""
    with np.load(folder / f"{name}.npz") as file:
        arrays = {k: file[k] for k in file.files}
    return json.loads(bytes(arrays.pop("meta")).decode()), arrays


def compare(arrays: dict, key: str, value: Tensor, stride: int, atol: float) -> None:
    """`value` flattened with the golden's stride, and its statistics, against the golden's."""
    value = value.detach().float().flatten()
    expected = arrays[f"out.{key}"].ravel()
    np.testing.assert_allclose(value[::stride].numpy(), expected, rtol=0, atol=atol)
    whole = value.double()
    found = [float(x) for x in (whole.mean(), whole.std(correction=0), whole.abs().max())]
    np.testing.assert_allclose(found, arrays[f"stats.{key}"], rtol=0, atol=atol)
