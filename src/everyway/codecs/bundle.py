"""Trained codecs, built from plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from everyway.codecs.cell_vq import CellVQ
from everyway.codecs.clip_text import ClipText
from everyway.codecs.encoders import ImageEmbedding
from everyway.codecs.image_vae import ImageVAE
from everyway.codecs.image_vq import ImageVQ
from everyway.codecs.pca import CellPCA, ThumbnailPCA
from everyway.codecs.text_latent import TextLatent
from everyway.codecs.token_table import TokenTable
from everyway.errors import UsageError

KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(ImageVAE, ImageEmbedding, TextLatent),  # a UniDiffuser's as published
        *(CellPCA, ThumbnailPCA, TokenTable),  # fitted
        *(ImageVQ, CellVQ, ClipText),
    )
}
PUBLISHED = {"image": "ImageVAE", "image_embed": "ImageEmbedding", "text": "TextLatent"}
"""Modality of a UniDiffuser -> the kind of its codec where its settings name none."""


def build(config: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    """modality -> codec of a UniDiffuser.  config: modality -> settings, as of `codec`."""
    return {name: codec(name, config[name], kind) for name, kind in PUBLISHED.items()}


def codec(name: str, settings: Mapping[str, Any], kind: str) -> nn.Module:
    """The codec of modality or condition `name` with fresh weights, frozen.

    settings: of its class, and under "kind" its name in KINDS, where that is not `kind`.  Raises
    UsageError for an unknown kind.
    """
    settings = {"kind": kind, **settings}
    kind = settings.pop("kind")
    if kind not in KINDS:
        raise UsageError(f"codec {kind!r} of {name} is unknown; choose one of {', '.join(KINDS)}")
    return KINDS[kind](**settings).eval().requires_grad_(False)
