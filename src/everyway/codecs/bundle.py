"""The trained codecs of a UniDiffuser, built from plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from everyway.codecs.encoders import ImageEmbedding
from everyway.codecs.image_vae import ImageVAE
from everyway.codecs.pca import CellPCA, ThumbnailPCA
from everyway.codecs.text_latent import TextLatent
from everyway.codecs.token_table import TokenTable
from everyway.errors import UsageError

KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (ImageVAE, ImageEmbedding, TextLatent, CellPCA, ThumbnailPCA, TokenTable)
}
PUBLISHED = {"image": "ImageVAE", "image_embed": "ImageEmbedding", "text": "TextLatent"}
"""Modality -> the kind of its codec where its settings name none."""


def build(config: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    """modality -> codec with fresh weights, frozen.

    config: modality -> settings of its class, and under `kind` its name in KINDS.  Raises
    ValueError for another kind.
    """
    return {name: _codec(name, dict(config[name])) for name in PUBLISHED}


def _codec(name: str, settings: dict[str, Any]) -> nn.Module:
    kind = settings.pop("kind", PUBLISHED[name])
    if kind not in KINDS:
        raise UsageError(f"codec {kind!r} of {name} is unknown; choose one of {', '.join(KINDS)}")
    return KINDS[kind](**settings).eval().requires_grad_(False)
