"""The image codecs of VQ-Diffusion as published: their settings and the released tensor names.

Sources: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2020, arXiv
2012.09841; Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021, arXiv
2111.14822.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from everyway.checkpoints.foreign import Shapes
from everyway.checkpoints.keymap import LayoutError, Table, check, to_ours, to_theirs
from everyway.checkpoints.store import unfilled
from everyway.checkpoints.tensor_files import Entries
from everyway.systems.autoencoder_layouts import as_convolutions, as_matrices, places
from everyway.systems.uvit_layouts import both

Settings = Mapping[str, Any]


def published(
    widths: Sequence[int], kind: str, codes: int, dim: int, z: int = 256, layers: int = 2
) -> dict[str, Any]:
    """Settings of an `ImageVQ` as published, at any size for tests.

    widths: channels of each level.  kind: of the quantiser.  dim: of a code.  z: channels between.
    """
    down = ["DownEncoderBlock2D"] * (len(widths) - 1) + ["AttnDownEncoderBlock2D"]
    up = ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (len(widths) - 1)
    both_sides = {
        "block_out_channels": list(widths),
        "layers_per_block": layers,
        "norm_num_groups": 32,
    }
    return {
        "encoder": {"in_channels": 3, "out_channels": z, "down_block_types": down} | both_sides,
        "decoder": {"in_channels": z, "out_channels": 3, "up_block_types": up} | both_sides,
        "quantiser": {"kind": kind, "codes": codes, "dim": dim},
    }


OPENIMAGES = published((128, 128, 256, 512), "gumbel", 8192, 256)
"""f8, of the models of captions; 2887 of its codes are in use there."""
IMAGENET = published((128, 128, 256, 256, 512), "nearest", 16384, 256)
"""f16, of the model of classes; 974 of its codes are in use there."""
FFHQ = published((128, 128, 256, 256, 512), "nearest", 1024, 256)
"""f16, of the model of faces."""
ITHQ = published((64, 128, 256, 512), "ema", 4096, 128)
"""f8, of the improved models."""
ITHQ_DIFFUSERS = published((64, 128, 256, 512), "nearest", 4096, 128)
"""ITHQ as diffusers keeps it, without the statistics of its moving averages."""
PRESETS = {
    "openimages": OPENIMAGES,
    "imagenet": IMAGENET,
    "ffhq": FFHQ,
    "ithq": ITHQ,
    "ithq of diffusers": ITHQ_DIFFUSERS,
}

_QUANTISER: dict[str, Table] = {
    "nearest": (("codes", "embedding.weight"),),
    "gumbel": (*both("logits", "proj"), ("codes", "embed.weight")),
    "ema": (
        ("codes", "embedding"),
        ("cluster_size", "cluster_size"),
        ("cluster_sum", "embedding_avg"),
    ),
}

MARKS = {
    "nearest": "quantize.embedding.weight",
    "gumbel": "quantize.embed.weight",
    "ema": "quantize.embedding",
}
"""kind -> the authors' name of its codes, which only codecs of this kind have."""


# -- the authors' -----------------------------------------------------------------------------


def keymap(levels: int, kind: str) -> Table:
    """(ours, the authors') names of a codec with so many levels and this kind of quantiser."""
    return (
        *(row for place in places(levels) for row in both(*place)),
        *((f"quantiser.{ours}", f"quantize.{theirs}") for ours, theirs in _QUANTISER[kind]),
    )


def from_authors(kind: str, entries: Entries) -> Entries:
    """Its attention is of 1x1 convolutions (C, C, 1, 1) in the file, of matrices here."""
    levels = Shapes(entries).count("encoder.down.{i}")
    return as_matrices(to_ours(entries, keymap(levels, kind)))


def to_authors(kind: str, entries: Entries) -> Entries:
    levels = Shapes(entries).count("encoder.down_blocks.{i}")
    return to_theirs(as_convolutions(entries), keymap(levels, kind))


_INSIDE = {
    "encoder.": "enc.encoder.",
    "quant_conv.": "enc.quant_conv.",
    "quantize.": "enc.quantize.",
    "decoder.": "dec.decoder.",
    "post_quant_conv.": "dec.post_quant_conv.",
}
_COPY = "dec.quantize."


def inside(entries: Entries) -> Entries:
    """A codec's own file -> its names in a whole checkpoint, where the quantiser lies twice."""
    out = {}
    for name, entry in entries.items():
        start = next(s for s in _INSIDE if name.startswith(s))
        rest = name.removeprefix(start)
        out[_INSIDE[start] + rest] = entry
        if start == "quantize.":
            out[_COPY + rest] = entry
    return out


def outside(entries: Entries) -> Entries:
    """The inverse of `inside`.  LayoutError where the two quantisers differ."""
    starts = {inner: outer for outer, inner in _INSIDE.items()}
    out, copies = {}, {}
    for name, entry in entries.items():
        start = next((s for s in (_COPY, *starts) if name.startswith(s)), "")
        if start == _COPY:
            copies[name.removeprefix("dec.")] = entry
        else:
            out[starts.get(start, "") + name.removeprefix(start)] = entry
    originals = {k: v for k, v in out.items() if k.startswith("quantize.")}
    check({k: v.shape for k, v in copies.items()}, {k: v.shape for k, v in originals.items()})
    if wrong := [k for k, v in copies.items() if not torch.equal(v.read(), originals[k].read())]:
        raise LayoutError(f"the file holds two different {wrong[0]}; load it again")
    return out


# -- diffusers' -------------------------------------------------------------------------------


def from_diffusers(entries: Entries) -> Entries:
    return to_ours(entries, _diffusers_keymap(Shapes(entries)))


def to_diffusers(entries: Entries) -> Entries:
    """The statistics of moving averages, which only training reads, are left out."""
    kept = {k: v for k, v in entries.items() if not k.startswith("quantiser.cluster_")}
    return to_theirs(kept, _diffusers_keymap(Shapes(entries)))


def _diffusers_keymap(shapes: Shapes) -> Table:
    levels = shapes.count("encoder.down_blocks.{i}")
    rows = (row for ours, _ in places(levels) for row in both(ours, ours))
    return (*rows, ("quantiser.codes", "quantize.embedding.weight"))


def diffusers_config(settings: Settings) -> dict[str, Any]:
    """The config.json of diffusers' VQModel."""
    encoder, decoder = settings["encoder"], settings["decoder"]
    return {
        "_class_name": "VQModel",
        "in_channels": encoder["in_channels"],
        "out_channels": decoder["out_channels"],
        "down_block_types": list(encoder["down_block_types"]),
        "up_block_types": list(decoder["up_block_types"]),
        "block_out_channels": list(encoder["block_out_channels"]),
        "layers_per_block": encoder["layers_per_block"],
        "latent_channels": encoder["out_channels"],
        "num_vq_embeddings": settings["quantiser"]["codes"],
        "norm_num_groups": encoder["norm_num_groups"],
        "vq_embed_dim": settings["quantiser"]["dim"],
    }


# -- settings ---------------------------------------------------------------------------------


def settings(kind: str, shapes: Shapes, told: Settings) -> dict[str, Any]:
    """Of an `ImageVQ` with attention on its coarsest level, all but the codes in use."""
    codes, dim = shapes["quantiser.codes"]
    first = "encoder.down_blocks.{}.resnets.0.conv1.weight"
    made = published(
        [shapes[first.format(n)][0] for n in range(shapes.count("encoder.down_blocks.{i}"))],
        kind,
        codes,
        dim,
        shapes["quant_conv.weight"][1],
        shapes.count("encoder.down_blocks.0.resnets.{i}"),
    )
    for side in ("encoder", "decoder"):
        made[side]["norm_num_groups"] = int(told.get("norm_num_groups", 32))
    return made


def expected(settings: Settings) -> dict[str, tuple[int, ...]]:
    from everyway.codecs.image_vq import ImageVQ

    own = {k: v for k, v in settings.items() if k != "used"}
    with unfilled():
        return {k: tuple(v.shape) for k, v in ImageVQ(**own).state_dict().items()}


def preset(settings: Settings) -> str:
    """Which of PRESETS it is, whatever codes are in use; "" for others."""
    own = {k: v for k, v in settings.items() if k != "used"}
    return next((name for name, config in PRESETS.items() if config == own), "")


def of_kind(kind: str, settings: Settings) -> bool:
    """Whether settings are of an `ImageVQ` that the released files can hold."""
    if settings.get("quantiser", {}).get("kind") != kind:
        return False
    return (settings["encoder"]["in_channels"], settings["decoder"]["out_channels"]) == (3, 3)
