"""VQ-Diffusion and Improved VQ-Diffusion as published: network presets, released tensor names.

A released .pth has two lists of weights.  "model" holds the whole system, its parts told apart by
the prefixes of PARTS.  "ema" holds the averages of the parts under "transformer.", named without
it, and is what the authors sample with.  diffusers has a file for each part.

Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Tang et al., "Improved Vector Quantized Diffusion Models", 2022, arXiv 2205.16007.
Parameter counts are of the released layouts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from everyway.checkpoints.keymap import LayoutError, Table
from everyway.nets.token_transformer import TokenTransformerConfig
from everyway.systems.uvit import both

T = TypeVar("T")

_BASE = TokenTransformerConfig(codes=2887, side=32, dim=1024, depth=19, heads=16, condition="text")
_BASE_NULL = replace(_BASE, learned_null=True)
_ITHQ = replace(_BASE_NULL, codes=4096, dim=1408, depth=36)
_FFHQ = TokenTransformerConfig(
    codes=1024, side=16, table_side=32, dim=512, depth=20, heads=16, mlp="conv"
)
_IMAGENET = replace(_FFHQ, codes=974, depth=24, condition="class", labels=1000)
# Known of the paper's small network, whose weights were not released: 18 blocks, width 192,
# convolutional MLPs of ratio 2, 34M parameters.  Inferred: 16 heads, and all else, as of the base;
# the count is then 34.3 * 2^20, just as the base's "370M" is 370.8 * 2^20.
_SMALL = replace(_BASE, dim=192, depth=18, mlp="conv", mlp_ratio=2)

PRESETS: dict[str, TokenTransformerConfig] = {
    "coco": _BASE,  # 388,780,871
    "cc": _BASE,
    "cub200": _BASE,
    "human": _BASE,
    "coco_learnable": _BASE_NULL,  # 388,820,295
    "cc_learnable": _BASE_NULL,
    "ithq": _ITHQ,  # 1,359,314,048
    "imagenet": _IMAGENET,  # 518,025,678
    "imagenet_learnable": replace(_IMAGENET, labels=1001, learned_null=True),  # 518,037,966
    "ffhq": _FFHQ,  # 411,185,664
    "small": _SMALL,  # 35,936,647
}


def keymap(config: TokenTransformerConfig) -> Table:
    """(ours, the authors') names of every weight of such a network, as in "ema"."""
    attn = "attn1" if config.condition == "text" else "attn"
    fc1, fc2 = ("mlp.conv1", "mlp.conv2") if config.mlp == "conv" else ("mlp.0", "mlp.2")
    names = ("query", "key", "value", "proj")
    inner = (
        *_ada_norm("norm_attn", "ln1"),
        *_attention("attn", attn, names),
        *_ada_norm("norm_cross", "ln1_1"),
        *_attention("cross", "attn2", names),
        *_ada_norm("norm_mlp", "ln2"),
        *both("norm_mlp", "ln2"),
        *both("mlp.fc1", fc1),
        *both("mlp.fc2", fc2),
    )
    return (
        *_embed("transformer.content_emb"),
        *_within("transformer.blocks.{i}", inner),
        *both("norm", "transformer.to_logits.0"),
        *both("head", "transformer.to_logits.1"),
        ("null", "empty_text_embed"),  # float64 in the file, cast to float32 where it is used
    )


def _embed(theirs: str) -> Table:
    names = (("codes", "emb"), ("rows", "height_emb"), ("columns", "width_emb"))
    return tuple((f"embed.{a}.weight", f"{theirs}.{b}.weight") for a, b in names)


def _ada_norm(ours: str, theirs: str) -> Table:
    table = (f"{ours}.table.weight", f"{theirs}.emb.weight")
    return (table, *both(f"{ours}.scale_shift", f"{theirs}.linear"))


def _attention(ours: str, theirs: str, names: tuple[str, str, str, str]) -> Table:
    pairs = zip(("q", "k", "v", "proj"), names)
    return tuple(row for a, b in pairs for row in both(f"{ours}.{a}", f"{theirs}.{b}"))


def _within(theirs: str, inner: Table) -> Table:
    return tuple((f"blocks.{{i}}.{a}", f"{theirs}.{b}") for a, b in inner)


_DIFFUSERS_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
DIFFUSERS_KEYMAP: Table = (
    *_embed("latent_image_embedding"),
    *_within(
        "transformer_blocks.{i}",
        (
            *_ada_norm("norm_attn", "norm1"),
            *_attention("attn", "attn1", _DIFFUSERS_ATTENTION),
            *_ada_norm("norm_cross", "norm2"),
            *_attention("cross", "attn2", _DIFFUSERS_ATTENTION),
            *both("norm_mlp", "norm3"),
            *both("mlp.fc1", "ff.net.0.proj"),
            *both("mlp.fc2", "ff.net.2"),
        ),
    ),
    *both("norm", "norm_out"),
    *both("head", "out"),
    ("null", "embeddings"),  # alone in a file: LearnedClassifierFreeSamplingEmbeddings
)
"""(ours, diffusers') names of every weight of a network with text and plain MLPs, as of ithq."""

PARTS: dict[str, str] = {
    "codec": "content_codec.",
    "text": "transformer.condition_emb.",
    "denoiser": "transformer.",
}
"""A part of a released system -> the prefix of its tensors; the first that fits counts."""

SCHEDULE: tuple[str, ...] = (
    "log_at",
    "log_bt",
    "log_ct",
    "log_1_min_ct",
    "log_cumprod_at",
    "log_cumprod_bt",
    "log_cumprod_ct",
    "log_1_min_cumprod_ct",
)
"""Buffers that the schedule gives: T entries, or T + 1 for the cumulative ones."""

HISTORY: tuple[str, ...] = ("Lt_history", "Lt_count")
"""Buffers of T entries that only training reads; zeros start it anew."""

MASK = "transformer.blocks.{i}.attn2.mask"
"""A buffer of lower-triangular ones that no forward pass reads."""

DERIVED: tuple[str, ...] = (*SCHEDULE, *HISTORY, MASK)
"""Names of the denoiser's tensors that are no weights; `{i}` stands for a number."""


def split(names: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """A file's "model" -> its parts, names without their prefix.  LayoutError for strangers."""
    out: dict[str, dict[str, T]] = {part: {} for part in PARTS}
    for name, value in names.items():
        part = next((p for p, prefix in PARTS.items() if name.startswith(prefix)), None)
        if part is None:
            raise LayoutError(f"{name} is of no part; known are {', '.join(PARTS.values())}")
        out[part][name.removeprefix(PARTS[part])] = value
    return out


def join(parts: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """The opposite of `split`."""
    return {PARTS[part] + name: v for part, names in parts.items() for name, v in names.items()}


def is_derived(name: str) -> bool:
    """Whether a tensor of the denoiser follows from its config, or starts at zero."""
    return re.sub(r"\.\d+\.", ".{i}.", name) in DERIVED


def without_derived(names: Mapping[str, T]) -> dict[str, T]:
    """The denoiser's weights alone, which `keymap` knows."""
    return {name: value for name, value in names.items() if not is_derived(name)}


def derived_shapes(config: TokenTransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every derived tensor in the authors' file of such a network."""
    shapes: dict[str, tuple[int, ...]] = {
        n: (config.steps + ("cumprod" in n),) for n in (*SCHEDULE, *HISTORY)
    }
    if config.condition != "text":
        return shapes
    square = (1, 1, config.length, config.length)
    return shapes | {MASK.format(i=i): square for i in range(config.depth)}


def cross_attention_mask(config: TokenTransformerConfig) -> Tensor:
    """What the authors' file holds under every MASK: (1, 1, L, L) float32."""
    return torch.ones(config.length, config.length).tril()[None, None]
