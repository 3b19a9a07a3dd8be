"""One convolutional encoder and decoder under three sets of names: ours (diffusers' of today),
diffusers' of 2022, and the authors' of VQGAN, which Stable Diffusion and VQ-Diffusion took over.

Source: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2020, arXiv
2012.09841.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from everyway.checkpoints.tensor_files import Entries

_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def places(levels: int) -> list[tuple[str, str]]:
    """(ours, the authors') places of all layers; {i} counts within a level."""
    out = [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    for tower in ("encoder", "decoder"):
        out += [(f"{tower}.conv_in", f"{tower}.conv_in")]
        out += [(f"{tower}.conv_norm_out", f"{tower}.norm_out")]
        out += [(f"{tower}.conv_out", f"{tower}.conv_out")]
        out += _inner(f"{tower}.mid_block.attentions.0", f"{tower}.mid.attn_1", _ATTENTION)
        for n in (0, 1):
            out += _inner(f"{tower}.mid_block.resnets.{n}", f"{tower}.mid.block_{n + 1}", _RESNET)
    for n in range(levels):
        out += _level(f"encoder.down_blocks.{n}", f"encoder.down.{n}", "downsample")
        # the authors count the decoder's levels from the finest, diffusers from the coarsest
        out += _level(f"decoder.up_blocks.{levels - 1 - n}", f"decoder.up.{n}", "upsample")
    return out


def as_matrices(entries: Entries) -> Entries:
    """Our names: the authors' 1x1 convolutions (C, C, 1, 1) of attention as matrices (C, C)."""
    return {k: v.reshape(v.shape[:2]) if _projects(k) else v for k, v in entries.items()}


def as_convolutions(entries: Entries) -> Entries:
    """The inverse of `as_matrices`."""
    return {k: v.reshape((*v.shape, 1, 1)) if _projects(k) else v for k, v in entries.items()}


def modern(entries: Entries) -> Entries:
    """diffusers' files of 2022 have older names of the attention's projections."""
    pattern = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(_LEGACY)})\.")
    return {pattern.sub(lambda m: f"{m[1]}.{_LEGACY[m[2]]}.", k): v for k, v in entries.items()}


def _level(ours: str, theirs: str, sampler: str) -> list[tuple[str, str]]:
    return [
        *_inner(f"{ours}.resnets.{{i}}", f"{theirs}.block.{{i}}", _RESNET),
        *_inner(f"{ours}.attentions.{{i}}", f"{theirs}.attn.{{i}}", _ATTENTION),
        (f"{ours}.{sampler}rs.0.conv", f"{theirs}.{sampler}.conv"),
    ]


def _inner(ours: str, theirs: str, parts: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{ours}.{a}", f"{theirs}.{b}") for a, b in parts.items()]


def _projects(name: str) -> bool:
    """Whether a tensor of ours is the weight of an attention projection."""
    return name.endswith((".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight"))
