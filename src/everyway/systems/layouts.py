"""Every foreign layout that can be read and written, in one table.

A network's settings are the config of its system; a codec's are those of its class, or a part of
them, since the text latent is published in two files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from everyway.checkpoints.foreign import FileLayout, Shapes, Whole
from everyway.checkpoints.keymap import Table, to_ours, to_theirs
from everyway.checkpoints.store import unfilled
from everyway.nets.uvit import UViT, UViTConfig
from everyway.systems import (
    autoencoder_layouts,
    unidiffuser,
    unidiffuser_layouts,
    uvit,
    uvit_layouts,
    vq_layouts,
)
from everyway.systems import unidiffuser_codec_layouts as codecs

Settings = Mapping[str, Any]


def _network_shapes(config: UViTConfig) -> dict[str, tuple[int, ...]]:
    with unfilled():
        return {k: tuple(v.shape) for k, v in UViT(config).state_dict().items()}


def _uvit_settings(shapes: Shapes, told: Settings) -> dict[str, Any]:
    return {"network": uvit_layouts.inferred(shapes, told).to_json()}


def _uvit_config(settings: Settings) -> UViTConfig:
    return UViTConfig.from_json(settings["network"])


def _uvit_fits(settings: Settings) -> bool:
    """Whether the released file of a U-ViT tells what this one is: what it cannot tell is what
    the released ones have."""
    config = _uvit_config(settings)
    released = uvit.as_released(settings["network"])
    if any(settings.get(k, released[k]) != released[k] for k in ("null_class", "schedule")):
        return False
    return uvit_layouts.read_back(config, Shapes(_network_shapes(config)))


def _unidiffuser_config(settings: Settings) -> UViTConfig:
    return unidiffuser.UniDiffuserConfig(norm="post", **_sizes(settings)).network()


def _sizes(settings: Settings) -> dict[str, Any]:
    return {k: settings[k] for k in unidiffuser.PUBLISHED["v1"]}


def _both_ways(table: Table) -> dict[str, Any]:
    return {
        "to_ours": lambda entries: to_ours(entries, table),
        "to_theirs": lambda entries: to_theirs(entries, table),
    }


def _after(prefix: str) -> dict[str, Any]:
    return {
        "to_ours": partial(codecs.within, prefix),
        "to_theirs": partial(codecs.without, prefix),
    }


_UNIDIFFUSER = {
    "part": "network",
    "component": "network",
    "system": "unidiffuser",
    "settings": unidiffuser_layouts.inferred,
    "hints": ("heads", "drawn_size"),
    "expected": lambda settings: _network_shapes(_unidiffuser_config(settings)),
    "fits": lambda settings: settings["norm"] == "post",
    "preset": lambda settings: unidiffuser.version_of(_sizes(settings)),
}
_AUTOENCODER = {
    "part": "image",
    "component": "image",
    "settings": codecs.autoencoder_settings,
    "expected": codecs.autoencoder_shapes,
    "constants": codecs.autoencoder_constants,
    "fits": lambda settings: "autoencoder" in settings,
    "preset": codecs.autoencoder_preset,
}
_CAPTION = {
    "part": "text",
    "component": "text",
    "places": ("narrow.", "widen.", "decoder.", "whiten."),
    "settings": codecs.caption_settings,
    "expected": codecs.caption_shapes,
    "constants": codecs.caption_constants,
    "aside": (codecs.CAPTION_BUFFERS,),
    "dropped": (r"clip.*",),
    "preset": codecs.caption_preset,
}

LAYOUTS: tuple[FileLayout, ...] = (
    *vq_layouts.LAYOUTS,  # of whose codecs an autoencoder has some of the marks
    FileLayout(
        name="unidiffuser",
        origin="authors",
        marks=("pos_embed", "clip_img_embed.weight"),
        file="uvit.pth",
        **_both_ways(unidiffuser_layouts.KEYMAP),
        **_UNIDIFFUSER,
    ),
    FileLayout(
        name="unidiffuser-diffusers",
        origin="diffusers",
        marks=("pos_embed", "vae_img_in.proj.weight"),
        file="unet/diffusion_pytorch_model.safetensors",
        to_ours=unidiffuser_layouts.from_diffusers,
        to_theirs=unidiffuser_layouts.to_diffusers,
        aside=(r"transformer\.pos_embed\.proj\.(weight|bias)",),
        their_config=unidiffuser_layouts.diffusers_config,
        **_UNIDIFFUSER,
    ),
    FileLayout(
        name="uvit",
        origin="authors",
        part="network",
        component="network",
        system="uvit",
        marks=("pos_embed", "patch_embed.proj.weight", "decoder_pred.weight"),
        settings=_uvit_settings,
        hints=("heads",),
        expected=lambda settings: _network_shapes(_uvit_config(settings)),
        fits=_uvit_fits,
        preset=lambda settings: uvit.preset_of(_uvit_config(settings)),
        file="nnet_ema.pth",
        **_both_ways(uvit_layouts.KEYMAP),
    ),
    FileLayout(
        name="autoencoder-kl",
        origin="authors",
        marks=("encoder.down.0.block.0.norm1.weight", "quant_conv.weight"),
        to_ours=codecs.autoencoder_from_authors,
        to_theirs=codecs.autoencoder_to_authors,
        file="autoencoder_kl.pth",
        **_AUTOENCODER,
    ),
    FileLayout(
        name="autoencoder-kl-diffusers",
        origin="diffusers",
        marks=("encoder.down_blocks.0.resnets.0.norm1.weight", "quant_conv.weight"),
        modern=autoencoder_layouts.modern,
        file="vae/diffusion_pytorch_model.safetensors",
        their_config=codecs.autoencoder_config,
        **_after("autoencoder."),
        **_AUTOENCODER,
    ),
    FileLayout(
        name="caption-decoder",
        origin="authors",
        marks=("gpt.transformer.wte.weight", "encode_prefix.weight"),
        to_ours=codecs.caption_from_authors,
        to_theirs=codecs.caption_to_authors,
        optional=(r"gpt\.lm_head\.weight",),
        file="caption_decoder.pth",
        **_CAPTION,
    ),
    FileLayout(
        name="caption-decoder-diffusers",
        origin="diffusers",
        marks=("transformer.transformer.wte.weight", "encode_prefix.weight"),
        to_ours=codecs.caption_from_diffusers,
        to_theirs=codecs.caption_to_diffusers,
        optional=(r"transformer\.lm_head\.weight",),
        file="text_decoder/diffusion_pytorch_model.safetensors",
        their_config=codecs.caption_config,
        **_CAPTION,
    ),
    FileLayout(
        name="clip-image",
        origin="diffusers",
        part="image_embed",
        component="image_embed",
        marks=("vision_model.embeddings.class_embedding", "visual_projection.weight"),
        settings=codecs.clip_image_settings,
        expected=codecs.clip_image_shapes,
        constants=codecs.clip_image_constants,
        dropped=(*codecs.COUNTED, *codecs.OF_TEXTS),
        preset=codecs.clip_image_preset,
        file="image_encoder/model.safetensors",
        their_config=codecs.clip_image_config,
        **_after("model."),
    ),
    FileLayout(
        name="clip-text",
        origin="diffusers",
        part="text_states",
        component="text",
        places=(codecs.TEXT_STATES,),
        marks=("text_model.embeddings.token_embedding.weight",),
        modern=codecs.clip_text_modern,
        settings=codecs.clip_text_settings,
        expected=codecs.clip_text_shapes,
        to_ours=codecs.clip_text_to_ours,
        to_theirs=codecs.clip_text_to_theirs,
        dropped=(*codecs.COUNTED, *codecs.OF_IMAGES, r"text_projection\.weight"),
        preset=codecs.clip_text_preset,
        file="text_encoder/model.safetensors",
        their_config=codecs.clip_text_config,
    ),
)
"""The first whose marks a file has is its layout; explicit names and parts choose among them."""

WHOLES: tuple[Whole, ...] = (vq_layouts.WHOLE,)
"""Every file that holds all parts of a model."""
