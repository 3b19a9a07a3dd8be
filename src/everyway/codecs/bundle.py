"""The three trained codecs of a UniDiffuser, built from plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

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
