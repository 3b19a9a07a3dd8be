"""The trained codecs of a UniDiffuser, built from plain data."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from everyway.errors import UsageError

MODULES = {
    "ImageVAE": "image_vae",
    "ImageEmbedding": "encoders",
    "TextLatent": "text_latent",
    "CellPCA": "pca",
    "ThumbnailPCA": "pca",
    "TokenTable": "token_table",
}
"""Kind, a class -> its module here, imported for a codec of that kind alone: some of them need
libraries that take longer to import than a small model takes to draw."""
PUBLISHED = {"image": "ImageVAE", "image_embed": "ImageEmbedding", "text": "TextLatent"}
"""Modality -> the kind of its codec where its settings name none."""


def build(config: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    """modality -> codec with fresh weights, frozen.

    config: modality -> settings of its class, and under `kind` its name in MODULES.  Raises
    ValueError for another kind.
    """
    return {name: _codec(name, dict(config[name])) for name in PUBLISHED}


def _codec(name: str, settings: dict[str, Any]) -> nn.Module:
    kind = settings.pop("kind", PUBLISHED[name])
    if kind not in MODULES:
        raise UsageError(f"codec {kind!r} of {name} is unknown; choose one of {', '.join(MODULES)}")
    module = import_module(f"everyway.codecs.{MODULES[kind]}")
    return getattr(module, kind)(**settings).eval().requires_grad_(False)
