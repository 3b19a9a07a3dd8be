"""The files of VQ-Diffusion that hold a whole model.

A released .pth has two lists of weights.  "model" holds the whole, its parts told apart by the
beginnings of their names.  "ema" holds the averages of the parts under "transformer.", named
without it, and is what the authors sample with.  diffusers has a file for each part.

Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Tang et al., "Improved Vector Quantized Diffusion Models", 2022, arXiv 2205.16007.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from everyway.checkpoints.tensor_files import Entries, LayoutError
from everyway.layouts.file_layout import Whole
from everyway.layouts.keymap import within
from everyway.layouts.vq_codec import into_whole, out_of_whole
from everyway.layouts.vq_network import FIRST

T = TypeVar("T")
NETWORK = "transformer."
PREFIXES = {
    "image": "content_codec.",
    "text_states": "transformer.condition_emb.",
    "network": NETWORK,
}
"""Part -> how its names begin; the first that fits counts."""


def parted(names: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """A "model" -> its parts, names without their beginning.  LayoutError for strangers."""
    out: dict[str, dict[str, T]] = {part: {} for part in PREFIXES}
    for name, value in names.items():
        part = next((p for p, prefix in PREFIXES.items() if name.startswith(prefix)), None)
        if part is None:
            raise LayoutError(f"{name} is of no part; known are {', '.join(PREFIXES.values())}")
        out[part][name.removeprefix(PREFIXES[part])] = value
    return out


def split(entries: Entries) -> dict[str, Entries]:
    """Part -> tensors, of a "model" or an "ema"; {} of other files.  LayoutError for strangers."""
    if FIRST in entries:
        entries = within(NETWORK, entries)
    if NETWORK + FIRST not in entries:
        return {}
    found = parted(entries)
    found["image"] = out_of_whole(found["image"])
    return {part: found[part] for part in ("network", "image", "text_states") if found[part]}


def join(parts: Mapping[str, Entries]) -> Entries:
    """A "model"."""
    own = {**parts, "image": into_whole(parts.get("image", {}))}
    return {PREFIXES[part] + name: v for part, names in own.items() for name, v in names.items()}


WHOLE = Whole(
    origin="authors",
    system="vq_diffusion",
    split=split,
    join=join,
    file="vq_diffusion.pth",
    averaged=NETWORK,
)
