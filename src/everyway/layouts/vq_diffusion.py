"""The files of VQ-Diffusion that hold a whole model.

A released .pth is one under "model", and under "ema" the averages of all but its codec, which it
is sampled with.

Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Tang et al., "Improved Vector Quantized Diffusion Models", 2022, arXiv 2205.16007.
"""

from __future__ import annotations

from collections.abc import Mapping

from everyway.checkpoints.tensor_files import Entries
from everyway.layouts import vq_codec, vq_network
from everyway.layouts.file_layout import Whole
from everyway.layouts.keymap import within

_PARTS = {"network": "denoiser", "image": "codec", "text_states": "text"}


def split(entries: Entries) -> dict[str, Entries]:
    """Part -> tensors, of a "model" or an "ema"; {} of other files.  LayoutError for strangers."""
    if vq_network.FIRST in entries:
        entries = within("transformer.", entries)
    if f"transformer.{vq_network.FIRST}" not in entries:
        return {}
    found = vq_network.split(entries)
    found["codec"] = vq_codec.out_of_whole(found["codec"])
    return {part: found[name] for part, name in _PARTS.items() if found[name]}


def join(parts: Mapping[str, Entries]) -> Entries:
    """A "model"."""
    own = {_PARTS[part]: entries for part, entries in parts.items()}
    return vq_network.join({**own, "codec": vq_codec.into_whole(own.get("codec", {}))})


WHOLE = Whole(
    origin="authors",
    system="vq_diffusion",
    split=split,
    join=join,
    file="vq_diffusion.pth",
    averaged="transformer.",
)
