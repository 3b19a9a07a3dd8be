"""UniDiffuser's caption_decoder.pth, and the same of diffusers: the GPT-2 that reads a text latent,
and the layer that makes the latent out of CLIP's states.

Source: Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale",
2023, arXiv 2303.06555.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from everyway.checkpoints.tensor_files import Entries, LayoutError
from everyway.layouts.autoencoder import unwhitened
from everyway.layouts.file_layout import FileLayout, Settings, Shapes, shapes_of
from everyway.layouts.keymap import starts, within

HEAD, TABLE = "decoder.lm_head.weight", "decoder.transformer.wte.weight"
_SIZES = ("n_embd", "n_layer", "n_head", "n_positions", "n_inner", "vocab_size")


def tied(entries: Entries) -> Entries:
    """The output layer is the embedding; a file may hold it twice, alike, or once."""
    if TABLE not in entries:
        return entries
    if HEAD in entries and entries[HEAD].shape == entries[TABLE].shape:
        head, table = (entries[name].read(torch.float32) for name in (HEAD, TABLE))
        if not torch.equal(head, table):
            raise LayoutError("lm_head differs from wte, which it is tied to; load the file again")
    return {HEAD: entries[TABLE], **entries} | {HEAD: entries[TABLE]}


def _settings(shapes: Shapes, given: Settings) -> dict[str, Any]:
    """Of a `TextLatent`, all but CLIP's part and the tokenizers.  given: n_head, the activation."""
    vocabulary, width = shapes[TABLE]
    decoder = {
        "n_embd": width,
        "n_layer": shapes.count("decoder.transformer.h.{i}"),
        "n_head": int(given.get("n_head", max(1, width // 64))),
        "n_positions": shapes["decoder.transformer.wpe.weight"][0],
        "n_inner": shapes["decoder.transformer.h.0.mlp.c_fc.weight"][1],
        "vocab_size": vocabulary,
        "activation_function": given.get("activation_function", "gelu_new"),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), vocabulary - 1),
    }
    return {
        "length": int(given.get("prefix_length", 77)),
        "dim": shapes["narrow.weight"][0],
        "decoder": decoder,
        "keep_padding": True,
        "beams": 5,
        "longest": 67,
    }


def _expected(settings: Settings) -> dict[str, tuple[int, ...]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    from everyway.codecs.encoders import configured

    width, dim = settings["decoder"]["n_embd"], settings["dim"]
    decoder = shapes_of(lambda: GPT2LMHeadModel(configured(GPT2Config, settings["decoder"])))
    linears = shapes_of(
        lambda: nn.ModuleDict({"narrow": nn.Linear(width, dim), "widen": nn.Linear(dim, width)})
    )
    return linears | within("decoder.", decoder)


def _diffusers_config(settings: Settings) -> dict[str, Any]:
    decoder = settings["decoder"]
    return {name: decoder[name] for name in (*_SIZES, "activation_function")} | {
        "_class_name": "UniDiffuserTextDecoder",
        "prefix_length": settings["length"],
        "prefix_inner_dim": decoder["n_embd"],
        "prefix_hidden_dim": settings["dim"],
    }


def _preset(settings: Settings) -> str:
    from everyway.codecs.text_latent import GPT2_SMALL

    own = settings["decoder"]
    same = all(own[k] == v for k, v in GPT2_SMALL.items()) and own["n_positions"] == 1024
    return "GPT-2 small" if same and settings["dim"] == 64 else ""


def _of(gpt: str, **options: Any) -> FileLayout:
    """gpt: what the GPT-2 is called in the file."""
    names = {"narrow.": "encode_prefix.", "widen.": "decode_prefix.", "decoder.": f"{gpt}."}
    back = {theirs: ours for ours, theirs in names.items()}
    return FileLayout(
        part="text",
        component="text",
        places=("narrow.", "widen.", "decoder.", "whiten."),
        marks=(f"{gpt}.transformer.wte.weight", "encode_prefix.weight"),
        to_ours=lambda entries: tied(starts(entries, back)),
        to_theirs=lambda entries: starts(entries, names),
        optional=(rf"{gpt}\.lm_head\.weight",),
        settings=_settings,
        expected=_expected,
        constants=lambda settings: unwhitened(settings["dim"]),
        aside=(rf"{gpt}\.transformer\.h\.\d+\.attn\.(masked_)?bias",),  # masks of old files
        dropped=(r"clip.*",),
        preset=_preset,
        **options,
    )


LAYOUTS = (
    _of("gpt", name="caption-decoder", origin="authors", file="caption_decoder.pth"),
    _of(
        "transformer",
        name="caption-decoder-diffusers",
        origin="diffusers",
        file="text_decoder/diffusion_pytorch_model.safetensors",
        their_config=_diffusers_config,
    ),
)
