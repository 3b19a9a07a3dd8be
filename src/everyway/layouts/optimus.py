"""optimus-vae.pth of Versatile Diffusion: the BERT and the GPT-2 of its text latent.

Source: Xu et al., "Versatile Diffusion: Text, Images and Variations All in One Diffusion Model",
2022, arXiv 2211.08332.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from everyway.checkpoints.tensor_files import E
from everyway.layouts.caption import tied
from everyway.layouts.file_layout import FileLayout, Settings, Shapes, shapes_of
from everyway.layouts.keymap import starts

NAMES = {
    "moments.": "encoder.linear.",
    "memory.": "decoder.transformer.linear.",
    "everywhere.": "decoder.transformer.linear_emb.",
    "encoder.": "encoder.",
    "decoder.": "decoder.",
}
"""How ours and theirs begin; the first that fits counts."""
BACK = {theirs: ours for ours, theirs in NAMES.items()}


def to_authors(state: Mapping[str, E]) -> dict[str, E]:
    return starts(state, NAMES)


def from_authors(state: Mapping[str, E]) -> dict[str, E]:
    """The inverse of `to_authors`."""
    return starts(state, BACK)
