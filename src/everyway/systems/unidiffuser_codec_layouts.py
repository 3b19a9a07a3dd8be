"""The codecs of UniDiffuser as published: their settings and names in the released files.

autoencoder_kl.pth is Stable Diffusion's autoencoder.  caption_decoder.pth holds the GPT-2 that
reads a text latent, and the layer that makes the latent out of CLIP's states.  Both CLIPs are
OpenAI's, in the files of transformers.

Source: Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale",
2023, arXiv 2303.06555.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from everyway.checkpoints.foreign import Shapes
from everyway.checkpoints.keymap import LayoutError, Table, to_ours, to_theirs
from everyway.checkpoints.store import unfilled
from everyway.checkpoints.tensor_files import Entries
from everyway.systems.autoencoder_layouts import as_convolutions, as_matrices, places
from everyway.systems.uvit_layouts import both

Settings = Mapping[str, Any]
SCALE = 0.18215
"""Of the latents of Stable Diffusion's autoencoder."""


def _on_meta(make) -> dict[str, tuple[int, ...]]:
    with unfilled():
        return {k: tuple(v.shape) for k, v in make().state_dict().items()}


def _whitening(channels: int, scale: float = 1.0) -> dict[str, Tensor]:
    """Of a codec that has only a published scale: it is in no file."""
    return {
        "whiten.shift": torch.zeros(channels),
        "whiten.scale": torch.full((channels,), 1.0 / scale),
    }


# -- autoencoder ------------------------------------------------------------------------------


def autoencoder_keymap(levels: int) -> Table:
    """(ours, the authors') names."""
    return tuple(row for a, b in places(levels) for row in both(f"autoencoder.{a}", b))


def autoencoder_from_authors(entries: Entries) -> Entries:
    levels = Shapes(entries).count("encoder.down.{i}")
    return as_matrices(to_ours(entries, autoencoder_keymap(levels)))


def autoencoder_to_authors(entries: Entries) -> Entries:
    levels = Shapes(entries).count("autoencoder.encoder.down_blocks.{i}")
    return to_theirs(as_convolutions(entries), autoencoder_keymap(levels))


def within(prefix: str, entries: Entries) -> Entries:
    """Every name after `prefix`."""
    return {prefix + name: entry for name, entry in entries.items()}


def without(prefix: str, entries: Entries) -> Entries:
    """The inverse of `within`."""
    return {name.removeprefix(prefix): entry for name, entry in entries.items()}


def autoencoder_settings(shapes: Shapes, told: Settings) -> dict[str, Any]:
    """Of an `ImageVAE`.  told: scaling_factor, norm_num_groups, sample_size."""
    levels = shapes.count("autoencoder.encoder.down_blocks.{i}")
    first = "autoencoder.encoder.down_blocks.{}.resnets.0.conv1.weight"
    return {
        "autoencoder": {
            "in_channels": shapes["autoencoder.encoder.conv_in.weight"][1],
            "out_channels": shapes["autoencoder.decoder.conv_out.weight"][0],
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": [shapes[first.format(n)][0] for n in range(levels)],
            "layers_per_block": shapes.count("autoencoder.encoder.down_blocks.0.resnets.{i}"),
            "latent_channels": shapes["autoencoder.post_quant_conv.weight"][0],
            "norm_num_groups": int(told.get("norm_num_groups", 32)),
            "sample_size": int(told.get("sample_size", 512)),
        },
        "fold": 1,
        "scale": float(told.get("scaling_factor", SCALE)),
    }


def autoencoder_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    from diffusers import AutoencoderKL

    made = _on_meta(lambda: AutoencoderKL(**settings["autoencoder"]))
    return {f"autoencoder.{k}": v for k, v in made.items()}


def autoencoder_constants(settings: Settings) -> dict[str, Tensor]:
    if settings.get("fold", 4) != 1:
        raise LayoutError("an autoencoder of folded pictures has no such layout")
    channels = settings["autoencoder"]["latent_channels"]
    return _whitening(channels, settings.get("scale", 1.0))


def autoencoder_config(settings: Settings) -> dict[str, Any]:
    """diffusers' config.json."""
    own = {"_class_name": "AutoencoderKL", "scaling_factor": settings["scale"]}
    return own | dict(settings["autoencoder"])


def autoencoder_preset(settings: Settings) -> str:
    from everyway.codecs.image_vae import STABLE_DIFFUSION

    return "KL-f8" if settings["autoencoder"] == STABLE_DIFFUSION else ""


# -- caption decoder --------------------------------------------------------------------------

CAPTION_BUFFERS = r"(gpt|transformer)\.transformer\.h\.\d+\.attn\.(masked_)?bias"
"""The causal mask, in files of older transformers."""
HEAD, TABLE = "decoder.lm_head.weight", "decoder.transformer.wte.weight"


def _renamed(entries: Entries, table: Mapping[str, str]) -> Entries:
    """Beginnings of names replaced; LayoutError for names of another beginning."""
    out, unknown = {}, []
    for name, entry in entries.items():
        start = next((s for s in table if name.startswith(s)), None)
        if start is None:
            unknown.append(name)
        else:
            out[table[start] + name.removeprefix(start)] = entry
    if unknown:
        raise LayoutError(
            f"the file holds tensors unknown to this layout: {', '.join(unknown[:8])}"
        )
    return out


_CAPTION_AUTHORS = {"narrow.": "encode_prefix.", "widen.": "decode_prefix.", "decoder.": "gpt."}
_CAPTION_DIFFUSERS = _CAPTION_AUTHORS | {"decoder.": "transformer."}


def caption_from_authors(entries: Entries) -> Entries:
    return _tied(_renamed(entries, {b: a for a, b in _CAPTION_AUTHORS.items()}))


def caption_from_diffusers(entries: Entries) -> Entries:
    return _tied(_renamed(entries, {b: a for a, b in _CAPTION_DIFFUSERS.items()}))


def caption_to_authors(entries: Entries) -> Entries:
    return _renamed(entries, _CAPTION_AUTHORS)


def caption_to_diffusers(entries: Entries) -> Entries:
    return _renamed(entries, _CAPTION_DIFFUSERS)


def _tied(entries: Entries) -> Entries:
    """The output layer is the embedding; a file may hold it twice, alike, or once."""
    if TABLE not in entries:
        return entries
    if HEAD in entries and entries[HEAD].shape == entries[TABLE].shape:
        if not torch.equal(entries[HEAD].read(), entries[TABLE].read()):
            raise LayoutError("lm_head differs from wte, which it is tied to; load the file again")
    return {HEAD: entries[TABLE], **entries} | {HEAD: entries[TABLE]}


def caption_settings(shapes: Shapes, told: Settings) -> dict[str, Any]:
    """Of a `TextLatent`, all but CLIP's part and the tokenizers.  told: n_head, the activation."""
    vocabulary, width = shapes[TABLE]
    decoder = {
        "n_embd": width,
        "n_layer": shapes.count("decoder.transformer.h.{i}"),
        "n_head": int(told.get("n_head", max(1, width // 64))),
        "n_positions": shapes["decoder.transformer.wpe.weight"][0],
        "n_inner": shapes["decoder.transformer.h.0.mlp.c_fc.weight"][1],
        "vocab_size": vocabulary,
        "activation_function": told.get("activation_function", "gelu_new"),
        "bos_token_id": vocabulary - 1,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    return {
        "length": int(told.get("prefix_length", 77)),
        "dim": shapes["narrow.weight"][0],
        "decoder": decoder,
        "keep_padding": True,
        "beams": 5,
        "longest": 67,
    }


def caption_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    width, dim = settings["decoder"]["n_embd"], settings["dim"]
    parts = {
        "narrow": lambda: nn.Linear(width, dim),
        "widen": lambda: nn.Linear(dim, width),
        "decoder": lambda: GPT2LMHeadModel(GPT2Config(**settings["decoder"])),
    }
    return {f"{part}.{k}": v for part, make in parts.items() for k, v in _on_meta(make).items()}


def caption_constants(settings: Settings) -> dict[str, Tensor]:
    return _whitening(settings["dim"])


def caption_config(settings: Settings) -> dict[str, Any]:
    """diffusers' config.json."""
    shared = ("n_embd", "n_layer", "n_head", "n_positions", "n_inner", "vocab_size")
    return {name: settings["decoder"][name] for name in (*shared, "activation_function")} | {
        "_class_name": "UniDiffuserTextDecoder",
        "prefix_length": settings["length"],
        "prefix_inner_dim": settings["decoder"]["n_embd"],
        "prefix_hidden_dim": settings["dim"],
    }


def caption_preset(settings: Settings) -> str:
    from everyway.codecs.text_latent import GPT2_SMALL

    own = settings["decoder"]
    same = all(own[k] == v for k, v in GPT2_SMALL.items()) and own["n_positions"] == 1024
    return "GPT-2 small" if same and settings["dim"] == 64 else ""


# -- CLIP -------------------------------------------------------------------------------------

TEXT_STATES = "states.model."
OF_IMAGES = (r"vision_model\..*", r"visual_projection\.weight")
OF_TEXTS = (r"text_model\..*", r"text_projection\.weight")
COUNTED = (r".*embeddings\.position_ids", "logit_scale")


def clip_image_settings(shapes: Shapes, told: Settings) -> dict[str, Any]:
    """Of an `ImageEmbedding`."""
    told = told.get("vision_config", told)
    layers = "model.vision_model.encoder.layers.{i}"
    width, _, patch, _ = shapes["model.vision_model.embeddings.patch_embedding.weight"]
    places = shapes["model.vision_model.embeddings.position_embedding.weight"][0]
    vision = {
        "hidden_size": width,
        "intermediate_size": shapes[layers.format(i=0) + ".mlp.fc1.weight"][0],
        "num_hidden_layers": shapes.count(layers),
        "num_attention_heads": int(told.get("num_attention_heads", max(1, width // 64))),
        "image_size": patch * round((places - 1) ** 0.5),
        "patch_size": patch,
        "projection_dim": shapes["model.visual_projection.weight"][0],
        "hidden_act": told.get("hidden_act", "quick_gelu"),
    }
    return {"vision": vision}


def clip_image_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    from everyway.codecs.encoders import ImageEmbedding

    made = _on_meta(lambda: ImageEmbedding(settings["vision"]))
    return {k: v for k, v in made.items() if not k.startswith("whiten.")}


def clip_image_constants(settings: Settings) -> dict[str, Tensor]:
    return _whitening(settings["vision"]["projection_dim"])


def clip_image_config(settings: Settings) -> dict[str, Any]:
    own = {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}
    return own | dict(settings["vision"])


def clip_image_preset(settings: Settings) -> str:
    from everyway.codecs.encoders import CLIP_B32_VISION

    return "CLIP B/32" if settings["vision"] == CLIP_B32_VISION else ""


def clip_text_modern(entries: Entries) -> Entries:
    """transformers 5 leaves `text_model.` out of the names; other files have it."""
    if any(name.startswith("text_model.") for name in entries):
        return entries
    return within("text_model.", entries)


def clip_text_to_ours(entries: Entries) -> Entries:
    return _renamed(entries, {"text_model.": TEXT_STATES + _infix()})


def clip_text_to_theirs(entries: Entries) -> Entries:
    return _renamed(entries, {TEXT_STATES + _infix(): "text_model."})


def _infix() -> str:
    """What the installed transformers puts before the names of a text encoder."""
    from everyway.codecs.encoders import TextStates

    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    marks = ("bos_token_id", "eos_token_id", "pad_token_id")
    tiny = {**dict.fromkeys(sizes, 1), **dict.fromkeys(marks, 0), "vocab_size": 1}
    names = _on_meta(lambda: TextStates(tiny))
    return "text_model." if any(n.startswith("model.text_model.") for n in names) else ""


def clip_text_settings(shapes: Shapes, told: Settings) -> dict[str, Any]:
    """Of the `TextStates` in a `TextLatent`."""
    told, start = told.get("text_config", told), TEXT_STATES + _infix()
    layers = f"{start}encoder.layers.{{i}}"
    vocabulary, width = shapes[f"{start}embeddings.token_embedding.weight"]
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[layers.format(i=0) + ".mlp.fc1.weight"][0],
        "num_hidden_layers": shapes.count(layers),
        "num_attention_heads": int(told.get("num_attention_heads", max(1, width // 64))),
        "max_position_embeddings": shapes[f"{start}embeddings.position_embedding.weight"][0],
        "projection_dim": width,
        "hidden_act": told.get("hidden_act", "quick_gelu"),
        "pad_token_id": vocabulary - 1,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }
    return {"text": text}


def clip_text_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    from everyway.codecs.encoders import TextStates

    made = _on_meta(lambda: TextStates(settings["text"]))
    return {f"states.{k}": v for k, v in made.items()}


def clip_text_config(settings: Settings) -> dict[str, Any]:
    return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"} | dict(
        settings["text"]
    )


def clip_text_preset(settings: Settings) -> str:
    from everyway.codecs.encoders import CLIP_L14_TEXT

    return "CLIP L/14" if settings["text"] == CLIP_L14_TEXT else ""
