"""U-ViT's released files: the authors' tensor names, and a network's config out of its tensors.

Source: Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", 2022,
arXiv 2209.12152.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from everyway.checkpoints.foreign import Shapes
from everyway.checkpoints.keymap import LayoutError, Table
from everyway.nets.tokens import Label
from everyway.nets.uvit import UViTConfig
from everyway.systems.uvit import CLIP, PRESETS, network

_LINEARS = (
    ("attn.qkv.weight", "attn.qkv.weight"),
    ("attn.qkv.bias", "attn.qkv.bias"),
    ("attn.proj.weight", "attn.proj.weight"),
    ("attn.proj.bias", "attn.proj.bias"),
    ("fc1.weight", "mlp.fc1.weight"),
    ("fc1.bias", "mlp.fc1.bias"),
    ("fc2.weight", "mlp.fc2.weight"),
    ("fc2.bias", "mlp.fc2.bias"),
    ("skip_linear.weight", "skip_linear.weight"),
    ("skip_linear.bias", "skip_linear.bias"),
)


def both(ours: str, theirs: str) -> Table:
    """A weight and a bias."""
    return tuple((f"{ours}.{p}", f"{theirs}.{p}") for p in ("weight", "bias"))


def blocks(norms: dict[str, str]) -> Table:
    """The rows of all blocks.  norms: our name of a LayerNorm -> the authors'."""
    inner = _LINEARS + tuple(row for a, b in norms.items() for row in both(a, b))
    places = {"ins.{i}": "in_blocks.{i}", "mid": "mid_block", "outs.{i}": "out_blocks.{i}"}
    return tuple((f"{p}.{a}", f"{q}.{b}") for p, q in places.items() for a, b in inner)


KEYMAP: Table = (
    ("positions", "pos_embed"),
    *both("embed.image", "patch_embed.proj"),
    ("embed.label.weight", "label_emb.weight"),
    *both("embed.text", "context_embed"),
    *both("embed.time_image.0", "time_embed.0"),
    *both("embed.time_image.2", "time_embed.2"),
    *blocks({"norm_attn": "norm1", "norm_mlp": "norm2"}),
    *both("norm", "norm"),
    *both("head.image", "decoder_pred"),
    *both("conv.image", "final_layer"),
)
"""(ours, the authors') names of every U-ViT tensor."""


def inferred(shapes: Shapes, told: Mapping[str, Any]) -> UViTConfig:
    """The config of weights by our names and shapes.

    Neither heads nor time_scale show in them: those of the preset of these shapes, whatever its
    number of classes; else heads are of 64 dimensions, and pixels are of continuous time.  Heads
    that are `told` go first.  LayoutError for no U-ViT.
    """
    dim = shapes["embed.image.weight"][0]
    _, channels, patch, _ = shapes["embed.image.weight"]
    classes = shapes["embed.label.weight"][0] if "embed.label.weight" in shapes else 0
    width = shapes["embed.text.weight"][1] if "embed.text.weight" in shapes else 0
    context = (CLIP[0], width) if width else None
    extras = 1 + bool(classes) + (context[0] if context else 0)
    config = network(
        size=patch * side(shapes["positions"][1] - extras),
        patch=patch,
        channels=channels,
        dim=dim,
        heads=int(told.get("heads", max(1, dim // 64))),
        classes=classes,
        context=context,
        conv="conv.image.weight" in shapes,
        skip="concat" if "outs.0.skip_linear.weight" in shapes else "none",
        time_scale=999.0 if channels == 3 else 1000.0,
        **blocks_of(shapes),
    )
    alike = next((p for p in PRESETS.values() if _alike(p, config)), config)
    heads = config.heads if "heads" in told else alike.heads
    return replace(config, heads=heads, time_scale=alike.time_scale)


def _alike(preset: UViTConfig, config: UViTConfig) -> bool:
    """Whether both have the same names and shapes, but for the number of classes."""
    if preset.dim != config.dim:
        return False
    like = replace(config, heads=preset.heads, time_scale=preset.time_scale)
    return _of_one_class(preset) == _of_one_class(like)


def _of_one_class(config: UViTConfig) -> UViTConfig:
    layout = (replace(s, classes=1) if isinstance(s, Label) else s for s in config.layout)
    return replace(config, layout=tuple(layout))


def read_back(config: UViTConfig, shapes: Shapes) -> bool:
    """Whether a file of these shapes, and its heads, tell all of that config."""
    try:
        return inferred(shapes, {"heads": config.heads}) == config
    except LayoutError:
        return False


def side(patches: int) -> int:
    """How many patches a row has; LayoutError if they are no square."""
    found = isqrt(max(patches, 0))
    if not found or found**2 != patches:
        raise LayoutError(f"the file's positions leave {patches} patches, which are no square")
    return found


def blocks_of(shapes: Shapes) -> dict[str, Any]:
    """Options of the blocks and of the time token, by our names and shapes."""
    wide, dim = shapes["mid.fc1.weight"]
    return {
        "depth": 2 * shapes.count("ins.{i}"),
        "mlp_ratio": wide // dim,
        "qkv_bias": "mid.attn.qkv.bias" in shapes,
        "time_mlp": "embed.time_image.0.weight" in shapes,
    }
