"""U-ViT's released files: the authors' tensor names, and a network's config out of its tensors.

Source: Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", 2022,
arXiv 2209.12152.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

from everyway.checkpoints.tensor_files import LayoutError
from everyway.layouts.file_layout import FileLayout, Settings, Shapes, shapes_of
from everyway.layouts.keymap import Table, inside, to_ours, to_theirs
from everyway.nets.tokens import Label
from everyway.nets.uvit import UViT, UViTConfig
from everyway.systems import uvit

_BLOCK: Table = (
    ("attn.qkv", "attn.qkv"),
    ("attn.proj", "attn.proj"),
    ("fc1", "mlp.fc1"),
    ("fc2", "mlp.fc2"),
    ("skip_linear", "skip_linear"),
)


def blocks(*norms: tuple[str, str]) -> Table:
    """The rows of all blocks.  norms: (our, the authors') name of a LayerNorm."""
    places = {"ins.{i}": "in_blocks.{i}", "mid": "mid_block", "outs.{i}": "out_blocks.{i}"}
    return tuple(row for a, b in places.items() for row in inside(a, b, (*_BLOCK, *norms)))


KEYMAP: Table = (
    ("positions", "pos_embed"),
    ("embed.image", "patch_embed.proj"),
    ("embed.label", "label_emb"),
    ("embed.text", "context_embed"),
    ("embed.time_image.{i}", "time_embed.{i}"),
    *blocks(("norm_attn", "norm1"), ("norm_mlp", "norm2")),
    ("norm", "norm"),
    ("head.image", "decoder_pred"),
    ("conv.image", "final_layer"),
)
"""(ours, the authors') names of every U-ViT tensor."""


def network_shapes(config: UViTConfig) -> dict[str, tuple[int, ...]]:
    return shapes_of(lambda: UViT(config))


def inferred(shapes: Shapes, given: Settings) -> UViTConfig:
    """The config of weights by our names and shapes.

    Neither heads nor time_scale show in them: those of the preset of these shapes, whatever its
    number of classes; else heads are of 64 dimensions, and pixels are of continuous time.  Heads
    that are `given` go first.  LayoutError for no U-ViT.
    """
    dim, channels, patch, _ = shapes["embed.image.weight"]
    classes = shapes.get("embed.label.weight", (0,))[0]
    width = shapes.get("embed.text.weight", (0, 0))[1]
    context = (uvit.CLIP[0], width) if width else None
    extras = 1 + bool(classes) + (context[0] if context else 0)
    config = uvit.network(
        size=patch * side(shapes["positions"][1] - extras),
        patch=patch,
        channels=channels,
        dim=dim,
        heads=int(given.get("heads", max(1, dim // 64))),
        classes=classes,
        context=context,
        conv="conv.image.weight" in shapes,
        skip="concat" if "outs.0.skip_linear.weight" in shapes else "none",
        time_scale=999.0 if channels == 3 else 1000.0,
        **blocks_of(shapes),
    )
    alike = next((p for p in uvit.PRESETS.values() if _alike(p, config)), config)
    heads = config.heads if "heads" in given else alike.heads
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


def _config(settings: Settings) -> UViTConfig:
    return UViTConfig.from_json(settings["network"])


def _fits(settings: Settings) -> bool:
    """Whether the released file of a U-ViT tells what this one is: what it cannot tell is what
    the released ones have."""
    config, released = _config(settings), uvit.as_released(settings["network"])
    if any(settings.get(k, released[k]) != released[k] for k in ("null_class", "schedule")):
        return False
    try:
        return inferred(Shapes(network_shapes(config)), {"heads": config.heads}) == config
    except LayoutError:
        return False


LAYOUTS = (
    FileLayout(
        name="uvit",
        origin="authors",
        part="network",
        component="network",
        system="uvit",
        marks=("pos_embed", "patch_embed.proj.weight", "decoder_pred.weight"),
        settings=lambda shapes, given: {"network": inferred(shapes, given).to_json()},
        hints=("heads",),
        expected=lambda settings: network_shapes(_config(settings)),
        to_ours=partial(to_ours, table=KEYMAP),
        to_theirs=partial(to_theirs, table=KEYMAP),
        fits=_fits,
        preset=lambda settings: uvit.preset_of(_config(settings)),
        file="nnet_ema.pth",
    ),
)
