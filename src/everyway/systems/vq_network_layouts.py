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
from typing import Any, TypeVar

import torch
from torch import Tensor

from everyway.checkpoints.foreign import Shapes
from everyway.checkpoints.keymap import LayoutError, Table, to_ours, to_theirs
from everyway.checkpoints.store import unfilled
from everyway.checkpoints.tensor_files import Entries, Stored, held
from everyway.errors import UsageError
from everyway.nets.token_transformer import TokenTransformer, TokenTransformerConfig
from everyway.process.mask_replace import MaskReplace
from everyway.systems.uvit_layouts import both

Settings = Mapping[str, Any]
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
    return _keymap(config.condition == "text", config.mlp == "conv")


def _keymap(text: bool, conv: bool) -> Table:
    attn = "attn1" if text else "attn"
    fc1, fc2 = ("mlp.conv1", "mlp.conv2") if conv else ("mlp.0", "mlp.2")
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


def from_authors(weights: Entries) -> Entries:
    """The authors' names of the weights -> ours."""
    text = any(".attn1." in name for name in weights)
    return to_ours(weights, _keymap(text, any(".mlp.conv1." in name for name in weights)))


def to_authors(entries: Entries) -> Entries:
    """The inverse of `from_authors`."""
    text = any(".cross." in name for name in entries)
    conv = any(k.endswith(".fc1.weight") and len(v.shape) == 4 for k, v in entries.items())
    return to_theirs(entries, _keymap(text, conv))


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


def schedule(codes: int, steps: int) -> dict[str, Tensor]:
    """The float32 tensors of SCHEDULE; what stands "before the first step" is their last entry."""
    process = MaskReplace(classes=codes, steps=steps)
    n = torch.arange(steps + 1, dtype=torch.float64) / steps
    single = process.stride(n[1:], n[:-1])
    cumulative = [torch.cat([rate[1:], rate[:1]]) for rate in process.cumulative(n)]
    out = {}
    for kind, rates in (("", single), ("cumprod_", cumulative)):
        out |= {f"log_{kind}{letter}t": rate.log() for letter, rate in zip("abc", rates)}
        out[f"log_1_min_{kind}ct"] = (1 - out[f"log_{kind}ct"].exp() + 1e-40).log()
    return {name: values.float() for name, values in out.items()}


def derived(settings: Settings) -> Entries:
    """Every derived tensor in the authors' file of such a network; one mask stands for all."""
    config = TokenTransformerConfig.from_json(settings)
    made = schedule(config.codes, config.steps)
    made |= {name: torch.zeros(config.steps) for name in HISTORY}
    if config.condition == "text":
        mask = torch.ones(config.length, config.length).tril()[None, None]
        made |= {MASK.format(i=i): mask for i in range(config.depth)}
    return {name: held(value) for name, value in made.items()}


# -- settings ---------------------------------------------------------------------------------


def inferred(shapes: Shapes, told: Settings) -> dict[str, Any]:
    """Of a TokenTransformerConfig, by our names and shapes of its weights.

    told: heads (16), side (that of the table; half of it for networks that are told no text).
    """
    codes, dim = shapes["head.weight"]
    rows = shapes["embed.rows.weight"][0]
    fc1 = shapes["blocks.0.mlp.fc1.weight"]
    text = "blocks.0.cross.k.weight" in shapes
    labels = shapes.get("blocks.0.norm_mlp.table.weight", (0,))[0]
    null = shapes.get("null", (77,))
    side = int(told.get("side", told.get("sample_size", rows if text else rows // 2)))
    config = TokenTransformerConfig(
        codes=codes,
        side=side,
        dim=dim,
        depth=shapes.count("blocks.{i}"),
        heads=int(told.get("heads", told.get("num_attention_heads", 16))),
        mlp_ratio=fc1[0] // dim,
        mlp="conv" if len(fc1) == 4 else "linear",
        table_side=0 if rows == side else rows,
        condition="text" if text else "class" if labels else "none",
        labels=labels,
        text_length=null[0],
        text_dim=shapes["blocks.0.cross.k.weight"][1] if text else 512,
        learned_null="null" in shapes or labels == 1001,
        steps=shapes["blocks.0.norm_attn.table.weight"][0],
    )
    return config.to_json()


def expected(settings: Settings) -> dict[str, tuple[int, ...]]:
    with unfilled():
        network = TokenTransformer(TokenTransformerConfig.from_json(settings))
    return {k: tuple(v.shape) for k, v in network.state_dict().items()}


def preset_of(settings: Settings) -> str:
    """The first of PRESETS that it is, "" for others; captions' base models are one network."""
    return next((name for name, c in PRESETS.items() if c.to_json() == dict(settings)), "")


def diffusers_config(settings: Settings) -> dict[str, Any]:
    """The config.json of diffusers' Transformer2DModel."""
    return {
        "_class_name": "Transformer2DModel",
        "num_attention_heads": settings["heads"],
        "attention_head_dim": settings["dim"] // settings["heads"],
        "num_layers": settings["depth"],
        "cross_attention_dim": settings["text_dim"],
        "attention_bias": True,
        "num_vector_embeds": settings["codes"] + 1,
        "num_embeds_ada_norm": settings["steps"],
        "norm_num_groups": 32,
        "sample_size": settings["side"],
        "activation_fn": "geglu-approximate",
        "norm_type": "ada_norm",
        "dropout": 0.0,
    }


def in_authors(settings: Settings) -> bool:
    """Whether the authors' file can hold such a network: a transformer with tables of time."""
    return settings.get("time") == "table" and "codes" in settings


def in_diffusers(settings: Settings) -> bool:
    """Whether Transformer2DModel can be such a network."""
    plain = {"condition": "text", "mlp": "linear", "activation": "gelu2", "time": "table"}
    same = all(settings.get(name) == value for name, value in plain.items())
    return same and not settings["table_side"] and settings["mlp_ratio"] == 4


# -- a null of its own ------------------------------------------------------------------------


def with_null(settings: Settings, entries: Entries) -> tuple[dict[str, Any], Entries]:
    """A network that learned no null, with a fresh one to train on.

    For a text it is normal, as a new network's is; for a class it is one more row of every table,
    their mean, which such networks are told for no class.  ValueError where there is one already.
    """
    if settings["learned_null"] or settings["condition"] == "none":
        raise UsageError("this network has a null of its own, or is told nothing; leave null out")
    own = {**settings, "learned_null": True}
    if settings["condition"] == "text":
        shape = (settings["text_length"], settings["text_dim"])
        null = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return own, entries | {"null": held(null)}
    tables = {k: v for k, v in entries.items() if k.endswith(".norm_mlp.table.weight")}
    own["labels"] += 1
    return own, entries | {name: _with_mean(table) for name, table in tables.items()}


def _with_mean(table: Stored) -> Stored:
    """A table with the mean of its rows below them."""
    rows, width = table.shape

    def load(dtype: torch.dtype | None) -> Tensor:
        whole = table.read(dtype)
        return torch.cat([whole, whole.float().mean(0, keepdim=True).to(whole.dtype)])

    return replace(table, shape=(rows + 1, width), load=load)
