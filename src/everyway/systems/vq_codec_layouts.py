"""The image codecs of VQ-Diffusion as published: their settings and the released tensor names.

Sources: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2020, arXiv
2012.09841; Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021, arXiv
2111.14822.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everyway.checkpoints.keymap import LayoutError, Table, check, to_ours, to_theirs
from everyway.systems.uvit import both


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

_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_LEGACY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_QUANTISER: dict[str, Table] = {
    "nearest": (("codes", "embedding.weight"),),
    "gumbel": (*both("logits", "proj"), ("codes", "embed.weight")),
    "ema": (
        ("codes", "embedding"),
        ("cluster_size", "cluster_size"),
        ("cluster_sum", "embedding_avg"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class CodecLayout:
    """How a file names the tensors of an `ImageVQ`.

    prefix: of the codec's names; a file's other names are not the codec's.  ignored: beginnings
    of names after the prefix that are of no use here (the losses of a training).
    copies: (kept, copy) beginnings of names that hold the same tensors twice.
    convolved: whether the projections of attention are 1x1 convolutions.
    """

    table: Table
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    convolved: bool = True


def standalone(config: Mapping[str, Any], prefix: str = "") -> CodecLayout:
    """A codec's own file (its "state_dict", or "model" for ITHQ).

    prefix: "first_stage_model." for FFHQ, whose codec lies in the file of a larger model.
    """
    table = _author_table(config, "", "", "quantize")
    return CodecLayout(table=table, prefix=prefix, ignored=("loss.",))


def inside(config: Mapping[str, Any]) -> CodecLayout:
    """The codec within a whole checkpoint of a diffusion, where the quantiser lies twice."""
    return CodecLayout(
        table=_author_table(config, "enc.", "dec.", "enc.quantize"),
        prefix="content_codec.",
        copies=(("enc.quantize.", "dec.quantize."),),
    )


def diffusers(config: Mapping[str, Any]) -> CodecLayout:
    """A VQModel of diffusers, whose files of 2022 have older names of the attention projections."""
    levels = len(config["encoder"]["block_out_channels"])
    older = [
        row
        for place in _attentions(levels)
        for ours, theirs in _LEGACY.items()
        for row in both(f"{place}.{ours}", f"{place}.{theirs}")
    ]
    same = [row for ours, _ in _tower_places(levels, "", "") for row in both(ours, ours)]
    table = (
        *same,
        *older,
        *both("quant_conv", "quant_conv"),
        *both("post_quant_conv", "post_quant_conv"),
        ("quantiser.codes", "quantize.embedding.weight"),
    )
    return CodecLayout(table=table, convolved=False)


def read(
    tensors: Mapping[str, Tensor], layout: CodecLayout, expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A file's tensors under our names.  expected: the state dict of the `ImageVQ` they are for.

    Raises LayoutError for anything missing, extra, misshapen or unknown, and where two copies of a
    tensor differ.
    """
    cut = len(layout.prefix)
    own = {k[cut:]: v for k, v in tensors.items() if k.startswith(layout.prefix)}
    own = {k: v for k, v in own.items() if not k.startswith(layout.ignored)}
    for kept, copy in layout.copies:
        own = _without_copy(own, kept, copy)
    ours = to_ours(own, layout.table)
    ours = {k: _projection(v) if _projects(k) else v for k, v in ours.items()}
    check(_shapes(ours), _shapes(expected))
    return ours


def write(state: Mapping[str, Tensor], layout: CodecLayout) -> dict[str, Tensor]:
    """The inverse of `read`: an `ImageVQ`'s state dict as such a file holds it."""
    if layout.convolved:
        state = {k: v[..., None, None] if _projects(k) else v for k, v in state.items()}
    theirs = to_theirs(state, layout.table)
    for kept, copy in layout.copies:
        twice = {copy + k[len(kept) :]: v for k, v in theirs.items() if k.startswith(kept)}
        theirs |= twice
    return {layout.prefix + k: v for k, v in theirs.items()}


def _author_table(config: Mapping[str, Any], enc: str, dec: str, quantiser: str) -> Table:
    levels = len(config["encoder"]["block_out_channels"])
    inner = _QUANTISER[config["quantiser"]["kind"]]
    return (
        *(row for place in _tower_places(levels, enc, dec) for row in both(*place)),
        *both("quant_conv", f"{enc}quant_conv"),
        *both("post_quant_conv", f"{dec}post_quant_conv"),
        *((f"quantiser.{ours}", f"{quantiser}.{theirs}") for ours, theirs in inner),
    )


def _tower_places(levels: int, enc: str, dec: str) -> list[tuple[str, str]]:
    """(ours, the authors') places of all layers in both towers; {i} counts within a level."""
    out = []
    for ours, theirs in (("encoder", f"{enc}encoder"), ("decoder", f"{dec}decoder")):
        out += [(f"{ours}.conv_in", f"{theirs}.conv_in")]
        out += [(f"{ours}.conv_norm_out", f"{theirs}.norm_out")]
        out += [(f"{ours}.conv_out", f"{theirs}.conv_out")]
        out += _inner(f"{ours}.mid_block.attentions.0", f"{theirs}.mid.attn_1", _ATTENTION)
        for n in (0, 1):
            middle = f"{theirs}.mid.block_{n + 1}"
            out += _inner(f"{ours}.mid_block.resnets.{n}", middle, _RESNET)
    for n in range(levels):
        out += _level(f"encoder.down_blocks.{n}", f"{enc}encoder.down.{n}", "downsample")
        # the authors count the decoder's levels from the finest, diffusers from the coarsest
        out += _level(f"decoder.up_blocks.{levels - 1 - n}", f"{dec}decoder.up.{n}", "upsample")
    return out


def _level(ours: str, theirs: str, sampler: str) -> list[tuple[str, str]]:
    return [
        *_inner(f"{ours}.resnets.{{i}}", f"{theirs}.block.{{i}}", _RESNET),
        *_inner(f"{ours}.attentions.{{i}}", f"{theirs}.attn.{{i}}", _ATTENTION),
        (f"{ours}.{sampler}rs.0.conv", f"{theirs}.{sampler}.conv"),
    ]


def _inner(ours: str, theirs: str, parts: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{ours}.{a}", f"{theirs}.{b}") for a, b in parts.items()]


def _attentions(levels: int) -> list[str]:
    coarsest = (f"encoder.down_blocks.{levels - 1}", "decoder.up_blocks.0")
    middles = [f"{tower}.mid_block.attentions.0" for tower in ("encoder", "decoder")]
    return [f"{place}.attentions.{{i}}" for place in coarsest] + middles


def _projects(name: str) -> bool:
    """Whether a tensor of ours is the weight of an attention projection."""
    return name.endswith((".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight"))


def _projection(weight: Tensor) -> Tensor:
    return weight.flatten(1) if tuple(weight.shape[2:]) == (1, 1) else weight


def _without_copy(tensors: dict[str, Tensor], kept: str, copy: str) -> dict[str, Tensor]:
    originals = {k[len(kept) :]: v for k, v in tensors.items() if k.startswith(kept)}
    copies = {k[len(copy) :]: v for k, v in tensors.items() if k.startswith(copy)}
    check(_shapes(copies), _shapes(originals))
    wrong = [k for k, v in copies.items() if not torch.equal(v, originals[k])]
    if wrong:
        raise LayoutError(f"the file holds two different {kept}{wrong[0]}; load it again")
    return {k: v for k, v in tensors.items() if not k.startswith(copy)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in tensors.items()}
