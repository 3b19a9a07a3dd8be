"""The image codecs of VQ-Diffusion as published: their settings and the released tensor names.

Sources: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2020, arXiv
2012.09841; Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021, arXiv
2111.14822.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from everyway.checkpoints.tensor_files import Entries, LayoutError, check, shapes
from everyway.layouts import autoencoder
from everyway.layouts.file_layout import FileLayout, Settings, Shapes, shapes_of
from everyway.layouts.keymap import Table, inside, starts, to_ours, to_theirs

_QUANTISER: dict[str, Table] = {
    kind: inside("quantiser", "quantize", rows)
    for kind, rows in {
        "nearest": (("codes", "embedding.weight"),),
        "gumbel": (("logits", "proj"), ("codes", "embed.weight")),
        "ema": (
            ("codes", "embedding"),
            ("cluster_size", "cluster_size"),
            ("cluster_sum", "embedding_avg"),
        ),
    }.items()
}
MARKS = {
    "nearest": "quantize.embedding.weight",
    "gumbel": "quantize.embed.weight",
    "ema": "quantize.embedding",
}
"""kind -> the authors' name of its codes, which only codecs of this kind have."""


# -- the authors' -----------------------------------------------------------------------------


def from_authors(kind: str, entries: Entries) -> Entries:
    return autoencoder.from_authors(entries, _QUANTISER[kind])


def to_authors(kind: str, entries: Entries) -> Entries:
    return autoencoder.to_authors(entries, _QUANTISER[kind])


_INSIDE = {
    "encoder.": "enc.encoder.",
    "quant_conv.": "enc.quant_conv.",
    "quantize.": "enc.quantize.",
    "decoder.": "dec.decoder.",
    "post_quant_conv.": "dec.post_quant_conv.",
}
_OUTSIDE = {inner: outer for outer, inner in _INSIDE.items()} | {"": ""}
_COPY = {"quantize.": "dec.quantize."}


def into_whole(entries: Entries) -> Entries:
    """A codec's own file -> its names in a whole checkpoint, where the quantiser lies twice."""
    return starts(entries, _INSIDE) | starts(_quantiser(entries), _COPY)


def out_of_whole(entries: Entries) -> Entries:
    """The inverse of `into_whole`.  LayoutError where the two quantisers differ."""
    copies = {
        k.removeprefix("dec."): v for k, v in entries.items() if k.startswith("dec.quantize.")
    }
    rest = {k: v for k, v in entries.items() if not k.startswith("dec.quantize.")}
    out = starts(rest, _OUTSIDE)
    originals = _quantiser(out)
    check(shapes(copies), shapes(originals))
    for name, copy in copies.items():
        if not torch.equal(*(e.read(torch.float32) for e in (copy, originals[name]))):
            raise LayoutError(f"the file holds two different {name}; load it again")
    return out


def _quantiser(entries: Entries) -> Entries:
    return {k: v for k, v in entries.items() if k.startswith("quantize.")}


# -- diffusers' -------------------------------------------------------------------------------


def from_diffusers(entries: Entries) -> Entries:
    return to_ours(entries, _diffusers_keymap(Shapes(entries)))


def to_diffusers(entries: Entries) -> Entries:
    """The statistics of moving averages, which only training reads, are left out."""
    kept = {k: v for k, v in entries.items() if not k.startswith("quantiser.cluster_")}
    return to_theirs(kept, _diffusers_keymap(Shapes(entries)))


def _diffusers_keymap(shapes: Shapes) -> Table:
    """Their names of all but the codes are ours."""
    levels = shapes.count("encoder.down_blocks.{i}")
    same = ((ours, ours) for ours, _ in autoencoder.places(levels))
    return (*same, ("quantiser.codes", "quantize.embedding.weight"))


def diffusers_config(settings: Settings) -> dict[str, Any]:
    """The config.json of diffusers' VQModel."""
    encoder, decoder = settings["encoder"], settings["decoder"]
    return {
        "_class_name": "VQModel",
        "in_channels": encoder["in_channels"],
        "out_channels": decoder["out_channels"],
        "down_block_types": list(encoder["down_block_types"]),
        "up_block_types": list(decoder["up_block_types"]),
        "block_out_channels": list(encoder["block_out_channels"]),
        "layers_per_block": encoder["layers_per_block"],
        "latent_channels": encoder["out_channels"],
        "num_vq_embeddings": settings["quantiser"]["codes"],
        "norm_num_groups": encoder["norm_num_groups"],
        "vq_embed_dim": settings["quantiser"]["dim"],
    }


# -- settings ---------------------------------------------------------------------------------


def _settings(kind: str, shapes: Shapes, given: Settings) -> dict[str, Any]:
    """Of an `ImageVQ` with attention on its coarsest level, all but the codes in use."""
    from everyway.systems.vq_diffusion import codec_of

    made = codec_of(
        autoencoder.widths(shapes),
        kind,
        *shapes["quantiser.codes"],
        z=shapes["quant_conv.weight"][1],
        layers=shapes.count("encoder.down_blocks.0.resnets.{i}"),
    )
    for tower in ("encoder", "decoder"):
        made[tower]["norm_num_groups"] = int(given.get("norm_num_groups", 32))
    return made


def _unused(settings: Settings) -> dict[str, Any]:
    """All but the codes in use."""
    return {k: v for k, v in settings.items() if k != "used"}


def expected(settings: Settings) -> dict[str, tuple[int, ...]]:
    from everyway.codecs.image_vq import ImageVQ

    return shapes_of(lambda: ImageVQ(**_unused(settings)))


def preset(settings: Settings) -> str:
    """Which of the released codecs it is, whatever codes are in use; "" for others."""
    from everyway.systems import vq_diffusion

    published = {
        "openimages": vq_diffusion.OPENIMAGES,
        "imagenet": vq_diffusion.IMAGENET,
        "ffhq": vq_diffusion.FFHQ,
        "ithq": vq_diffusion.ITHQ,
        # as diffusers keeps it, without the statistics of its moving averages
        "ithq of diffusers": vq_diffusion.codec_of((64, 128, 256, 512), "nearest", 4096, 128),
    }
    return next((name for name, own in published.items() if own == _unused(settings)), "")


def _of_kind(kind: str, settings: Settings) -> bool:
    """Whether settings are of an `ImageVQ` that the released files can hold."""
    if settings.get("quantiser", {}).get("kind") != kind:
        return False
    return (settings["encoder"]["in_channels"], settings["decoder"]["out_channels"]) == (3, 3)


# -- the layouts ------------------------------------------------------------------------------

_CODEC = {
    "part": "image",
    "component": "image",
    "places": ("encoder.", "quant_conv.", "quantiser.", "post_quant_conv.", "decoder."),
    "expected": expected,
    "preset": preset,
}


def _of_authors(kind: str) -> FileLayout:
    return FileLayout(
        name=f"vq-codec-{kind}",
        origin="authors",
        marks=("encoder.down.0.block.0.norm1.weight", MARKS[kind]),
        settings=partial(_settings, kind),
        to_ours=partial(from_authors, kind),
        to_theirs=partial(to_authors, kind),
        dropped=(r"loss\..*",),
        fits=partial(_of_kind, kind),
        file="vq_codec.pth",
        root="model" if kind == "ema" else "state_dict",
        **_CODEC,
    )


LAYOUTS = (
    *(_of_authors(kind) for kind in MARKS),
    FileLayout(
        name="vq-codec-diffusers",
        origin="diffusers",
        marks=("encoder.down_blocks.0.resnets.0.norm1.weight", "quantize.embedding.weight"),
        modern=autoencoder.modern,
        settings=partial(_settings, "nearest"),
        to_ours=from_diffusers,
        to_theirs=to_diffusers,
        fits=lambda settings: any(_of_kind(kind, settings) for kind in ("nearest", "ema")),
        file="vqvae/diffusion_pytorch_model.safetensors",
        their_config=diffusers_config,
        **_CODEC,
    ),
)
