"""The files of VQ-Diffusion, as rows of the table of layouts.

A released .pth is a whole model under "model", and under "ema" the averages of all but its codec,
which it is sampled with.  diffusers has a folder for each part.

Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Tang et al., "Improved Vector Quantized Diffusion Models", 2022, arXiv 2205.16007.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from everyway.checkpoints.foreign import FileLayout, Shapes, Whole
from everyway.checkpoints.keymap import to_ours, to_theirs
from everyway.checkpoints.tensor_files import Entries
from everyway.systems import autoencoder_layouts
from everyway.systems import clip_text_layouts as clip
from everyway.systems import vq_codec_layouts as codec
from everyway.systems import vq_network_layouts as network

Settings = Mapping[str, Any]
FIRST = "transformer.content_emb.emb.weight"
"""The authors' name of a network's table of codes."""
_PARTS = {"network": "denoiser", "image": "codec", "text_states": "text"}


def split(entries: Entries) -> dict[str, Entries]:
    """Part -> tensors, of a "model" or an "ema"; {} of other files.  LayoutError for strangers."""
    if FIRST in entries:
        entries = {f"transformer.{name}": entry for name, entry in entries.items()}
    if f"transformer.{FIRST}" not in entries:
        return {}
    found = network.split(entries)
    found["codec"] = codec.outside(found["codec"])
    return {part: found[name] for part, name in _PARTS.items() if found[name]}


def join(parts: Mapping[str, Entries]) -> Entries:
    """A "model"."""
    own = {_PARTS[part]: entries for part, entries in parts.items()}
    return network.join({**own, "codec": codec.inside(own.get("codec", {}))})


WHOLE = Whole(
    origin="authors",
    system="vq_diffusion",
    split=split,
    join=join,
    file="vq_diffusion.pth",
    averaged="transformer.",
)

# -- the network ------------------------------------------------------------------------------

_NETWORK = {
    "part": "network",
    "component": "network",
    "system": "vq_diffusion",
    "expected": network.expected,
    "hints": ("heads", "side"),
    "preset": network.preset_of,
}


def _without_null(settings: Settings) -> dict[str, Any]:
    """diffusers has the null in a folder of its own."""
    return {k: v for k, v in settings.items() if k != "learned_null"}


def _null_settings(shapes: Shapes, told: Settings) -> dict[str, Any]:
    length, width = shapes["null"]
    return {"learned_null": True, "text_length": length, "text_dim": width}


def _null_config(settings: Settings) -> dict[str, Any]:
    own = {"learnable": True, "hidden_size": settings["text_dim"]}
    name = "LearnedClassifierFreeSamplingEmbeddings"
    return own | {"_class_name": name, "length": settings["text_length"]}


NETWORKS = (
    FileLayout(
        name="vq-diffusion",
        origin="authors",
        marks=(FIRST,),
        settings=network.inferred,
        to_ours=network.from_authors,
        to_theirs=network.to_authors,
        derived=network.derived,
        following=(*network.SCHEDULE, r"transformer\.blocks\.\d+\.attn2\.mask"),
        aside=network.HISTORY,
        fits=network.in_authors,
        file="vq_network.pth",
        **_NETWORK,
    ),
    FileLayout(
        name="vq-diffusion-diffusers",
        origin="diffusers",
        places=("embed.", "blocks.", "norm.", "head."),
        marks=("latent_image_embedding.emb.weight", "transformer_blocks.0.norm1.emb.weight"),
        settings=lambda shapes, told: _without_null(network.inferred(shapes, told)),
        to_ours=partial(to_ours, table=network.DIFFUSERS_KEYMAP),
        to_theirs=partial(to_theirs, table=network.DIFFUSERS_KEYMAP),
        fits=network.in_diffusers,
        file="transformer/diffusion_pytorch_model.safetensors",
        their_config=network.diffusers_config,
        **_NETWORK
        | {"preset": lambda settings: network.preset_of({**settings, "learned_null": True})},
    ),
    FileLayout(
        name="vq-null-diffusers",
        origin="diffusers",
        places=("null",),
        marks=("embeddings",),
        settings=_null_settings,
        to_ours=partial(to_ours, table=network.DIFFUSERS_KEYMAP),
        to_theirs=partial(to_theirs, table=network.DIFFUSERS_KEYMAP),
        file="learned_classifier_free_sampling_embeddings/diffusion_pytorch_model.safetensors",
        their_config=_null_config,
        **_NETWORK
        | {
            "part": "null",
            "expected": lambda settings: {"null": (settings["text_length"], settings["text_dim"])},
            "preset": lambda settings: "",
        },
    ),
)

# -- the codec --------------------------------------------------------------------------------

_CODEC = {
    "part": "image",
    "component": "image",
    "places": ("encoder.", "quant_conv.", "quantiser.", "post_quant_conv.", "decoder."),
    "expected": codec.expected,
    "preset": codec.preset,
}


def _of_authors(kind: str) -> FileLayout:
    return FileLayout(
        name=f"vq-codec-{kind}",
        origin="authors",
        marks=("encoder.down.0.block.0.norm1.weight", codec.MARKS[kind]),
        settings=partial(codec.settings, kind),
        to_ours=partial(codec.from_authors, kind),
        to_theirs=partial(codec.to_authors, kind),
        dropped=(r"loss\..*",),
        fits=partial(codec.of_kind, kind),
        file="vq_codec.pth",
        root="model" if kind == "ema" else "state_dict",
        **_CODEC,
    )


CODECS = (
    *(_of_authors(kind) for kind in codec.MARKS),
    FileLayout(
        name="vq-codec-diffusers",
        origin="diffusers",
        marks=("encoder.down_blocks.0.resnets.0.norm1.weight", "quantize.embedding.weight"),
        modern=autoencoder_layouts.modern,
        settings=partial(codec.settings, "nearest"),
        to_ours=codec.from_diffusers,
        to_theirs=codec.to_diffusers,
        fits=lambda settings: any(codec.of_kind(kind, settings) for kind in ("nearest", "ema")),
        file="vqvae/diffusion_pytorch_model.safetensors",
        their_config=codec.diffusers_config,
        **_CODEC,
    ),
)

# -- the text ---------------------------------------------------------------------------------

TEXT = FileLayout(
    name="clip-text-openai",
    origin="authors",
    part="text_states",
    component="text",
    system="vq_diffusion",
    places=(clip.codecs.TEXT_STATES, clip.PROJECTION),
    marks=("token_embedding.weight", "ln_final.weight"),
    settings=clip.settings,
    expected=clip.expected,
    to_ours=clip.from_openai,
    to_theirs=clip.to_openai,
    dropped=(r"visual\..*", "logit_scale"),
    fits=lambda settings: "decoder" not in settings,  # a text latent has one
    preset=clip.preset,
    file="clip_text.pth",
)

LAYOUTS: tuple[FileLayout, ...] = (*NETWORKS, *CODECS, TEXT)
