"""Stable Diffusion's autoencoder as published, and the names that its encoder and decoder share
with the codecs of VQ-Diffusion.

There are three sets of names: ours (diffusers' of today), diffusers' of 2022, and the authors' of
VQGAN, which Stable Diffusion and VQ-Diffusion took over.

Source: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2020, arXiv
2012.09841.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from everyway.checkpoints.tensor_files import Entries, LayoutError
from everyway.layouts.file_layout import FileLayout, Settings, Shapes, shapes_of
from everyway.layouts.keymap import Table, inside, to_ours, to_theirs, within, without

SCALE = 0.18215
"""Of the latents of Stable Diffusion's autoencoder."""
_RESNET = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("conv_shortcut", "nin_shortcut"),
)
_ATTENTION = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)
_LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def places(levels: int) -> Table:
    """(ours, the authors') names of all layers; {i} counts within a level."""
    out: list[tuple[str, str]] = [(name, name) for name in ("quant_conv", "post_quant_conv")]
    for tower in ("encoder", "decoder"):
        names = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
        out += inside(tower, tower, tuple(names.items()))
        out += inside(f"{tower}.mid_block.attentions.0", f"{tower}.mid.attn_1", _ATTENTION)
        for n in (0, 1):
            out += inside(f"{tower}.mid_block.resnets.{n}", f"{tower}.mid.block_{n + 1}", _RESNET)
    for n in range(levels):
        out += _level(f"encoder.down_blocks.{n}", f"encoder.down.{n}", "downsample")
        # the authors count the decoder's levels from the finest, diffusers from the coarsest
        out += _level(f"decoder.up_blocks.{levels - 1 - n}", f"decoder.up.{n}", "upsample")
    return tuple(out)


def _level(ours: str, theirs: str, sampler: str) -> Table:
    return (
        *inside(f"{ours}.resnets.{{i}}", f"{theirs}.block.{{i}}", _RESNET),
        *inside(f"{ours}.attentions.{{i}}", f"{theirs}.attn.{{i}}", _ATTENTION),
        (f"{ours}.{sampler}rs.0.conv", f"{theirs}.{sampler}.conv"),
    )


def from_authors(entries: Entries, more: Table = ()) -> Entries:
    """The authors' names -> diffusers' of today.  more: rows of what else is in the file.

    Their attention is of 1x1 convolutions (C, C, 1, 1), diffusers' of matrices (C, C).
    """
    levels = Shapes(entries).count("encoder.down.{i}")
    ours = to_ours(entries, (*places(levels), *more))
    return {k: v.reshape(v.shape[:2]) if _projects(k) else v for k, v in ours.items()}


def to_authors(entries: Entries, more: Table = ()) -> Entries:
    """The inverse of `from_authors`."""
    levels = Shapes(entries).count("encoder.down_blocks.{i}")
    own = {k: v.reshape((*v.shape, 1, 1)) if _projects(k) else v for k, v in entries.items()}
    return to_theirs(own, (*places(levels), *more))


def _projects(name: str) -> bool:
    """Whether a tensor of ours is the weight of an attention projection."""
    return name.endswith((".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight"))


def modern(entries: Entries) -> Entries:
    """diffusers' files of 2022 have older names of the attention's projections."""
    pattern = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(_LEGACY)})\.")
    return {pattern.sub(lambda m: f"{m[1]}.{_LEGACY[m[2]]}.", k): v for k, v in entries.items()}


def widths(shapes: Shapes, prefix: str = "") -> list[int]:
    """Channels of each level."""
    levels = shapes.count(prefix + "encoder.down_blocks.{i}")
    first = prefix + "encoder.down_blocks.{}.resnets.0.conv1.weight"
    return [shapes[first.format(n)][0] for n in range(levels)]


def unwhitened(channels: int, scale: float = 1.0) -> dict[str, Tensor]:
    """Of a codec that has only a published scale: it is in no file."""
    full = torch.full((channels,), 1.0 / scale)
    return {"whiten.shift": torch.zeros(channels), "whiten.scale": full}


# -- the layouts ------------------------------------------------------------------------------


def _settings(shapes: Shapes, given: Settings) -> dict[str, Any]:
    """Of an `ImageVAE`.  given: scaling_factor, norm_num_groups, sample_size."""
    channels = widths(shapes, "autoencoder.")
    return {
        "autoencoder": {
            "in_channels": shapes["autoencoder.encoder.conv_in.weight"][1],
            "out_channels": shapes["autoencoder.decoder.conv_out.weight"][0],
            "down_block_types": ["DownEncoderBlock2D"] * len(channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(channels),
            "block_out_channels": channels,
            "layers_per_block": shapes.count("autoencoder.encoder.down_blocks.0.resnets.{i}"),
            "latent_channels": shapes["autoencoder.post_quant_conv.weight"][0],
            "norm_num_groups": int(given.get("norm_num_groups", 32)),
            "sample_size": int(given.get("sample_size", 512)),
        },
        "fold": 1,
        "scale": float(given.get("scaling_factor", SCALE)),
    }


def _expected(settings: Settings) -> dict[str, tuple[int, ...]]:
    from diffusers import AutoencoderKL

    return within("autoencoder.", shapes_of(lambda: AutoencoderKL(**settings["autoencoder"])))


def _constants(settings: Settings) -> dict[str, Tensor]:
    if settings.get("fold", 4) != 1:
        raise LayoutError("an autoencoder of folded pictures has no such layout")
    return unwhitened(settings["autoencoder"]["latent_channels"], settings.get("scale", 1.0))


def _preset(settings: Settings) -> str:
    from everyway.codecs.image_vae import STABLE_DIFFUSION

    return "KL-f8" if settings["autoencoder"] == STABLE_DIFFUSION else ""


def _diffusers_config(settings: Settings) -> dict[str, Any]:
    own = {"_class_name": "AutoencoderKL", "scaling_factor": settings["scale"]}
    return own | dict(settings["autoencoder"])


_AUTOENCODER: Mapping[str, Any] = {
    "part": "image",
    "component": "image",
    "settings": _settings,
    "expected": _expected,
    "constants": _constants,
    "fits": lambda settings: "autoencoder" in settings,
    "preset": _preset,
}
LAYOUTS = (
    FileLayout(
        name="autoencoder-kl",
        origin="authors",
        marks=("encoder.down.0.block.0.norm1.weight", "quant_conv.weight"),
        to_ours=lambda entries: within("autoencoder.", from_authors(entries)),
        to_theirs=lambda entries: to_authors(without("autoencoder.", entries)),
        file="autoencoder_kl.pth",
        **_AUTOENCODER,
    ),
    FileLayout(
        name="autoencoder-kl-diffusers",
        origin="diffusers",
        marks=("encoder.down_blocks.0.resnets.0.norm1.weight", "quant_conv.weight"),
        modern=modern,
        to_ours=partial(within, "autoencoder."),
        to_theirs=partial(without, "autoencoder."),
        file="vae/diffusion_pytorch_model.safetensors",
        their_config=_diffusers_config,
        **_AUTOENCODER,
    ),
)
