"""Codecs from plain data, by the name of their class."""

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
    "VectorText": "text_vae",
    "SequenceText": "text_vae",
    "CellPCA": "pca",
    "ThumbnailPCA": "pca",
    "TokenTable": "token_table",
    "ImageVQ": "image_vq",
    "CellVQ": "cell_vq",
    "ClipText": "clip_text",
    "Optimus": "optimus",
    "ImageContext": "clip_contexts",
    "TextContext": "clip_contexts",
    "T5States": "context_encoders",
    "ClipSentence": "context_encoders",
    "PatchContext": "patches",
}
"""Kind, a class -> its module here, imported for a codec of that kind alone: some of them need
libraries that take longer to import than a small model takes to draw."""
PUBLISHED = {"image": "ImageVAE", "image_embed": "ImageEmbedding", "text": "TextLatent"}
"""Modality of a UniDiffuser -> the kind of its codec where its settings name none."""


def build(config: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    """modality -> codec of a UniDiffuser.  config: modality -> settings, as of `codec`."""
    return {name: codec(name, config[name], kind) for name, kind in PUBLISHED.items()}


def codec(name: str, settings: Mapping[str, Any], kind: str) -> nn.Module:
    """The codec of modality or condition `name` with fresh weights, frozen.

    settings: of its class, and under "kind" its name in MODULES, where that is not `kind`.  Raises
    UsageError for an unknown kind.
    """
    settings = {"kind": kind, **settings}
    kind = settings.pop("kind")
    if kind not in MODULES:
        raise UsageError(f"codec {kind!r} of {name} is unknown; choose one of {', '.join(MODULES)}")
    module = import_module(f"everyway.codecs.{MODULES[kind]}")
    return getattr(module, kind)(**settings).eval().requires_grad_(False)
