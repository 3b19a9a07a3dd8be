"""The three trained codecs of a UniDiffuser as one folder: the autoencoder, CLIP, the text latent.

`train/codecs.py` writes such a folder; `config_of` and `restore` read it.  A whole model's folder
holds the same weights under the same names, and its config holds what `config_of` gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from everyway.checkpoints.store import StoreError
from everyway.codecs.encoders import ImageEmbedding
from everyway.codecs.image_vae import ImageVAE
from everyway.codecs.text_latent import TextLatent

KINDS: dict[str, type[nn.Module]] = {
    "image": ImageVAE,
    "image_embed": ImageEmbedding,
    "text": TextLatent,
}


def build(config: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    """modality -> codec with fresh weights, frozen.  config: modality -> settings of its class."""
    return {n: kind(**config[n]).eval().requires_grad_(False) for n, kind in KINDS.items()}


def config_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The settings of the codecs in `folder`.  Raises StoreError where one is missing."""
    return {name: json.loads(_read(Path(folder) / f"{name}.json")) for name in KINDS}


def restore(folder: Path, codecs: Mapping[str, nn.Module]) -> None:
    """Load the weights of `folder` into codecs built from its `config_of`."""
    for name, codec in codecs.items():
        path = Path(folder) / f"{name}.safetensors"
        if not path.is_file():
            raise StoreError(_missing(path))
        codec.load_state_dict({k: v.float() for k, v in load_file(path).items()})


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        raise StoreError(_missing(path)) from None


def _missing(path: Path) -> str:
    return f"{path} is missing; train the codecs first: python -m everyway.train.codecs --help"
