"""UniDiffuser v0 and v1 as published: network configurations, the released and diffusers' names.

Source: Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale",
2023, arXiv 2303.06555.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from everyway.checkpoints.tensor_files import E, LayoutError
from everyway.layouts.file_layout import FileLayout, Settings, Shapes
from everyway.layouts.keymap import Table, apart, inside, to_ours, to_theirs, together
from everyway.layouts.uvit import blocks, blocks_of, network_shapes, side
from everyway.nets.tokens import Flag, Patches, Sequence, TimeToken, Vector
from everyway.nets.uvit import UViTConfig
from everyway.systems import unidiffuser


def published(
    *,
    version: int = 1,
    size: int = 64,
    text: tuple[int, int] = (77, 64),
    embed_dim: int = 512,
    dim: int = 1536,
    depth: int = 30,
    heads: int = 24,
    **options,
) -> UViTConfig:
    """v0 (952,504,912 parameters) or v1 (952,509,520), at any size for tests.

    v1 adds a token for the kind of training data: 0 web data, 1 cleaner data (the default).
    """
    flag = (Flag(name="data_type", values=2, default=1),) if version == 1 else ()
    layout = (
        TimeToken(clock="image"),
        TimeToken(clock="text"),
        *flag,
        Sequence(name="text", length=text[0], dim=text[1]),
        Vector(name="image_embed", dim=embed_dim),
        Patches(name="image", channels=4, size=size, patch=2),
    )
    return UViTConfig(
        layout=layout, dim=dim, depth=depth, heads=heads, norm="post", conv=False, **options
    )


KEYMAP: Table = (
    ("positions", "pos_embed"),
    ("flag_positions.data_type", "pos_embed_token"),
    ("embed.data_type", "token_embedding"),
    ("embed.image", "patch_embed.proj"),
    ("embed.text", "text_embed"),
    ("embed.image_embed", "clip_img_embed"),
    ("embed.time_image.{i}", "time_img_embed.{i}"),
    ("embed.time_text.{i}", "time_text_embed.{i}"),
    *blocks(("norm_skip", "norm1"), ("norm_attn", "norm2"), ("norm_mlp", "norm3")),
    ("norm", "norm"),
    ("head.image", "decoder_pred"),
    ("head.image_embed", "clip_img_out"),
    ("head.text", "text_out"),
)
"""(ours, the released) names of every UniDiffuser tensor."""

_BLOCK: Table = (
    *((f"attn.{p}", f"attn1.to_{p}") for p in "qkv"),
    ("attn.proj", "attn1.to_out.0"),
    ("norm_attn", "norm1"),
    ("fc1", "ff.net.0.proj"),
    ("fc2", "ff.net.2"),
    ("norm_mlp", "norm3"),
)
_IN, _MID, _OUT = (f"transformer.transformer_{p}" for p in ("in_blocks", "mid_block", "out_blocks"))

DIFFUSERS_KEYMAP: Table = (
    ("positions", "pos_embed"),
    ("flag_positions.data_type", "data_type_pos_embed_token"),
    ("embed.data_type", "data_type_token_embedding"),
    ("embed.image", "vae_img_in.proj"),
    ("embed.text", "text_in"),
    ("embed.image_embed", "clip_img_in"),
    ("embed.time_image.0", "timestep_img_embed.linear_1"),
    ("embed.time_image.2", "timestep_img_embed.linear_2"),
    ("embed.time_text.0", "timestep_text_embed.linear_1"),
    ("embed.time_text.2", "timestep_text_embed.linear_2"),
    *inside("ins.{i}", f"{_IN}.{{i}}", _BLOCK),
    *inside("mid", _MID, _BLOCK),
    *inside("outs.{i}", f"{_OUT}.{{i}}.block", _BLOCK),
    ("outs.{i}.skip_linear", f"{_OUT}.{{i}}.skip.skip_linear"),
    ("outs.{i}.norm_skip", f"{_OUT}.{{i}}.skip.norm"),
    ("norm", "transformer.norm_out"),
    ("head.image", "vae_img_out"),
    ("head.image_embed", "clip_img_out"),
    ("head.text", "text_out"),
)
"""(ours with q, k and v apart, diffusers') names of every tensor of a post-norm UniDiffuser."""
_QKV = (".attn.qkv.", ".attn.{}.")

DIFFUSERS_UNUSED = {
    f"transformer.pos_embed.proj.{p}": f"vae_img_in.proj.{p}" for p in ("weight", "bias")
}
"""Tensors that diffusers stores and never reads -> the ones they are copies of."""


def to_diffusers(state: Mapping[str, E]) -> dict[str, E]:
    """Our state dict, of tensors or of a file's entries -> that of diffusers' UniDiffuserModel.

    Its q, k and v are tensors of their own, and it stores a copy of the patch embedding that it
    never reads.  No two tensors share memory.  Raises LayoutError for names unknown there.
    """
    theirs = to_theirs(apart(state, *_QKV), DIFFUSERS_KEYMAP)
    copied = {k: source for k, source in DIFFUSERS_UNUSED.items() if source in theirs}
    return theirs | {k: theirs[source].clone() for k, source in copied.items()}


def from_diffusers(state: Mapping[str, E]) -> dict[str, E]:
    """The state dict of diffusers' UniDiffuserModel -> ours; its unused tensors are left out.

    Raises LayoutError for unknown names, and for an attention that lacks its q, k or v.
    """
    used = {name: tensor for name, tensor in state.items() if name not in DIFFUSERS_UNUSED}
    return together(to_ours(used, DIFFUSERS_KEYMAP), *_QKV)


def inferred(shapes: Shapes, given: Settings) -> dict[str, Any]:
    """The sizes of a `UniDiffuserConfig` by our names and shapes of its weights.

    given: drawn_size, and heads (diffusers: num_attention_heads), which else are of 64 dimensions.
    LayoutError for weights of other networks.
    """
    dim, channels, patch, _ = shapes["embed.image.weight"]
    text_dim, embed_dim = (shapes[f"embed.{n}.weight"][1] for n in ("text", "image_embed"))
    length = int(given.get("num_text_tokens", 77))
    options = blocks_of(shapes)
    if options.pop("mlp_ratio") != 4:
        raise LayoutError("the file's MLPs are not four times as wide as its tokens")
    return options | {
        "image_channels": channels,
        "image_size": patch * side(shapes["positions"][1] - 3 - length),
        "patch": patch,
        "embed_dim": embed_dim,
        "text_length": length,
        "text_dim": text_dim,
        "dim": dim,
        "heads": int(given.get("heads", given.get("num_attention_heads", max(1, dim // 64)))),
        "data_type": "embed.data_type.weight" in shapes,
        "drawn_size": int(given.get("drawn_size", 0)),
    }


def diffusers_config(settings: Settings) -> dict[str, Any]:
    """The config.json of diffusers' UniDiffuserModel.  settings: of a `UniDiffuserConfig`."""
    return {
        "_class_name": "UniDiffuserModel",
        "text_dim": settings["text_dim"],
        "clip_img_dim": settings["embed_dim"],
        "num_text_tokens": settings["text_length"],
        "num_attention_heads": settings["heads"],
        "attention_head_dim": settings["dim"] // settings["heads"],
        "in_channels": settings["image_channels"],
        "out_channels": settings["image_channels"],
        "num_layers": settings["depth"],
        "attention_bias": settings["qkv_bias"],
        "sample_size": settings["image_size"],
        "patch_size": settings["patch"],
        "activation_fn": "gelu",
        "num_embeds_ada_norm": 1000,
        "block_type": "unidiffuser",
        "norm_type": "layer_norm",
        "pre_layer_norm": False,
        "use_timestep_embedding": settings["time_mlp"],
        "use_patch_pos_embed": False,
        "ff_final_dropout": True,
        "use_data_type_embedding": settings["data_type"],
    }


def _sizes(settings: Settings) -> dict[str, Any]:
    return {k: settings[k] for k in unidiffuser.PUBLISHED["v1"]}


def _expected(settings: Settings) -> dict[str, tuple[int, ...]]:
    config = unidiffuser.UniDiffuserConfig(norm="post", **_sizes(settings))
    return network_shapes(config.network())


_NETWORK = {
    "part": "network",
    "component": "network",
    "system": "unidiffuser",
    "settings": inferred,
    "hints": ("heads", "drawn_size"),
    "expected": _expected,
    "fits": lambda settings: settings["norm"] == "post",
    "preset": lambda settings: unidiffuser.version_of(_sizes(settings)),
}
LAYOUTS = (
    FileLayout(
        name="unidiffuser",
        origin="authors",
        marks=("pos_embed", "clip_img_embed.weight"),
        to_ours=partial(to_ours, table=KEYMAP),
        to_theirs=partial(to_theirs, table=KEYMAP),
        file="uvit.pth",
        **_NETWORK,
    ),
    FileLayout(
        name="unidiffuser-diffusers",
        origin="diffusers",
        marks=("pos_embed", "vae_img_in.proj.weight"),
        to_ours=from_diffusers,
        to_theirs=to_diffusers,
        aside=(r"transformer\.pos_embed\.proj\.(weight|bias)",),
        file="unet/diffusion_pytorch_model.safetensors",
        their_config=diffusers_config,
        **_NETWORK,
    ),
)
