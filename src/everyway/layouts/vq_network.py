"""VQ-Diffusion's networks as published: released tensor names, and what follows from the settings.

Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Tang et al., "Improved Vector Quantized Diffusion Models", 2022, arXiv 2205.16007.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from everyway.checkpoints.tensor_files import Entries, LayoutError, Stored, held
from everyway.errors import UsageError
from everyway.layouts.file_layout import FileLayout, Settings, Shapes, shapes_of
from everyway.layouts.keymap import Table, inside, to_ours, to_theirs
from everyway.nets.token_transformer import TokenTransformer, TokenTransformerConfig
from everyway.process.mask_replace import MaskReplace

FIRST = "transformer.content_emb.emb.weight"
"""The authors' name of a network's table of codes."""


def keymap(config: TokenTransformerConfig) -> Table:
    """(ours, the authors') names of every weight of such a network, as in "ema"."""
    return _keymap(config.condition == "text", config.mlp == "conv")


def _keymap(text: bool, conv: bool) -> Table:
    names = ("query", "key", "value", "proj")
    block = (
        *_ada_norm("norm_attn", "ln1"),
        *_attention("attn", "attn1" if text else "attn", names),
        *_ada_norm("norm_cross", "ln1_1"),
        *_attention("cross", "attn2", names),
        *_ada_norm("norm_mlp", "ln2"),
        ("norm_mlp", "ln2"),
        ("mlp.fc1", "mlp.conv1" if conv else "mlp.0"),
        ("mlp.fc2", "mlp.conv2" if conv else "mlp.2"),
    )
    return (
        *inside("embed", "transformer.content_emb", _EMBED),
        *inside("blocks.{i}", "transformer.blocks.{i}", block),
        ("norm", "transformer.to_logits.0"),
        ("head", "transformer.to_logits.1"),
        ("null", "empty_text_embed"),  # float64 in the file, cast to float32 where it is used
    )


_EMBED: Table = (("codes", "emb"), ("rows", "height_emb"), ("columns", "width_emb"))


def _ada_norm(ours: str, theirs: str) -> Table:
    return (f"{ours}.table", f"{theirs}.emb"), (f"{ours}.scale_shift", f"{theirs}.linear")


def _attention(ours: str, theirs: str, names: tuple[str, str, str, str]) -> Table:
    return inside(ours, theirs, tuple(zip(("q", "k", "v", "proj"), names)))


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
_DIFFUSERS_BLOCK: Table = (
    *_ada_norm("norm_attn", "norm1"),
    *_attention("attn", "attn1", _DIFFUSERS_ATTENTION),
    *_ada_norm("norm_cross", "norm2"),
    *_attention("cross", "attn2", _DIFFUSERS_ATTENTION),
    ("norm_mlp", "norm3"),
    ("mlp.fc1", "ff.net.0.proj"),
    ("mlp.fc2", "ff.net.2"),
)
DIFFUSERS_KEYMAP: Table = (
    *inside("embed", "latent_image_embedding", _EMBED),
    *inside("blocks.{i}", "transformer_blocks.{i}", _DIFFUSERS_BLOCK),
    ("norm", "norm_out"),
    ("head", "out"),
    ("null", "embeddings"),  # alone in a file: LearnedClassifierFreeSamplingEmbeddings
)
"""(ours, diffusers') names of every weight of a network with text and plain MLPs, as of ithq."""

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
    entries = {name: held(value) for name, value in made.items()}
    if config.condition == "text":
        mask = _mask(config.length)
        entries |= {MASK.format(i=i): mask for i in range(config.depth)}
    return entries


def _mask(length: int) -> Stored:
    """Made when it is read: its size is what a file says."""

    def load(dtype: torch.dtype | None) -> Tensor:
        return torch.ones(1, 1, length, length, dtype=dtype).tril()

    return Stored(shape=(1, 1, length, length), dtype=torch.float32, load=load)


# -- settings ---------------------------------------------------------------------------------


def inferred(shapes: Shapes, given: Settings) -> dict[str, Any]:
    """Of a TokenTransformerConfig, by our names and shapes of its weights.

    given: heads (16), side (that of the table; half of it for networks without texts).
    """
    codes, dim = shapes["head.weight"]
    rows = shapes["embed.rows.weight"][0]
    fc1 = shapes["blocks.0.mlp.fc1.weight"]
    text = "blocks.0.cross.k.weight" in shapes
    labels = shapes.get("blocks.0.norm_mlp.table.weight", (0,))[0]
    null = shapes.get("null", (77,))
    side = int(given.get("side", given.get("sample_size", rows if text else rows // 2)))
    if not 0 < side <= rows:
        raise LayoutError(f"side cannot be {side}: the network's tables are of {rows} rows")
    config = TokenTransformerConfig(
        codes=codes,
        side=side,
        dim=dim,
        depth=shapes.count("blocks.{i}"),
        heads=int(given.get("heads", given.get("num_attention_heads", 16))),
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
    return shapes_of(lambda: TokenTransformer(TokenTransformerConfig.from_json(settings)))


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


def _in_authors(settings: Settings) -> bool:
    """Whether the authors' file can hold such a network: a transformer with tables of time."""
    return settings.get("time") == "table" and "codes" in settings


def _in_diffusers(settings: Settings) -> bool:
    """Whether Transformer2DModel can be such a network."""
    plain = {"condition": "text", "mlp": "linear", "activation": "gelu2", "time": "table"}
    same = all(settings.get(name) == value for name, value in plain.items())
    return same and not settings["table_side"] and settings["mlp_ratio"] == 4


# -- a null of its own ------------------------------------------------------------------------


def with_null(settings: Settings, entries: Entries) -> tuple[dict[str, Any], Entries]:
    """A network that learned no null, with a fresh one to train on.

    For a text it is normal, as a new network's is; for a class it is one more row of every table,
    their mean, which such networks get for no class.  ValueError where there is one already.
    """
    if settings["learned_null"] or settings["condition"] == "none":
        raise UsageError("this network has a null of its own, or no condition; leave null out")
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


# -- the layouts ------------------------------------------------------------------------------


def _preset(settings: Settings) -> str:
    from everyway.systems.vq_diffusion import preset_of

    return preset_of(settings)


def _without_null(settings: Settings) -> dict[str, Any]:
    """diffusers has the null in a folder of its own."""
    return {k: v for k, v in settings.items() if k != "learned_null"}


def _null_settings(shapes: Shapes, given: Settings) -> dict[str, Any]:
    length, width = shapes["null"]
    return {"learned_null": True, "text_length": length, "text_dim": width}


def _null_config(settings: Settings) -> dict[str, Any]:
    own = {"learnable": True, "hidden_size": settings["text_dim"]}
    name = "LearnedClassifierFreeSamplingEmbeddings"
    return own | {"_class_name": name, "length": settings["text_length"]}


_NETWORK: Mapping[str, Any] = {
    "part": "network",
    "component": "network",
    "system": "vq_diffusion",
    "expected": expected,
    "hints": ("heads", "side"),
    "preset": _preset,
}
_DIFFUSERS: Mapping[str, Any] = {
    "origin": "diffusers",
    "to_ours": partial(to_ours, table=DIFFUSERS_KEYMAP),
    "to_theirs": partial(to_theirs, table=DIFFUSERS_KEYMAP),
}
LAYOUTS = (
    FileLayout(
        name="vq-diffusion",
        origin="authors",
        marks=(FIRST,),
        settings=inferred,
        to_ours=from_authors,
        to_theirs=to_authors,
        derived=derived,
        following=(*SCHEDULE, r"transformer\.blocks\.\d+\.attn2\.mask"),
        aside=HISTORY,
        fits=_in_authors,
        file="vq_network.pth",
        **_NETWORK,
    ),
    FileLayout(
        name="vq-diffusion-diffusers",
        places=("embed.", "blocks.", "norm.", "head."),
        marks=("latent_image_embedding.emb.weight", "transformer_blocks.0.norm1.emb.weight"),
        settings=lambda shapes, given: _without_null(inferred(shapes, given)),
        fits=_in_diffusers,
        file="transformer/diffusion_pytorch_model.safetensors",
        their_config=diffusers_config,
        **_DIFFUSERS
        | _NETWORK
        | {"preset": lambda settings: _preset({**settings, "learned_null": True})},
    ),
    FileLayout(
        name="vq-null-diffusers",
        places=("null",),
        marks=("embeddings",),
        settings=_null_settings,
        file="learned_classifier_free_sampling_embeddings/diffusion_pytorch_model.safetensors",
        their_config=_null_config,
        **_DIFFUSERS
        | _NETWORK
        | {
            "part": "null",
            "expected": lambda settings: {"null": (settings["text_length"], settings["text_dim"])},
            "preset": lambda settings: "",
        },
    ),
)
