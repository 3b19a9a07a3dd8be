"""optimus-vae.pth of Versatile Diffusion: the BERT and the GPT-2 of its text latent.

Source: Xu et al., "Versatile Diffusion: Text, Images and Variations All in One Diffusion Model",
2022, arXiv 2211.08332.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everyway.checkpoints.tensor_files import E
from everyway.layouts.caption import tied
from everyway.layouts.file_layout import FileLayout, Settings, Shapes, shapes_of
from everyway.layouts.keymap import starts

NAMES = {
    "moments.": "encoder.linear.",
    "memory.": "decoder.transformer.linear.",
    "everywhere.": "decoder.transformer.linear_emb.",
    "encoder.": "encoder.",
    "decoder.": "decoder.",
}
"""How ours and theirs begin; the first that fits counts."""
BACK = {theirs: ours for ours, theirs in NAMES.items()}


def to_authors(state: Mapping[str, E]) -> dict[str, E]:
    return starts(state, NAMES)


def from_authors(state: Mapping[str, E]) -> dict[str, E]:
    """The inverse of `to_authors`."""
    return starts(state, BACK)


def _settings(shapes: Shapes, given: Settings) -> dict[str, Any]:
    """Of an `Optimus`, all but its tokenizers.  Heads, which no shape shows, are of 64 numbers."""
    start = "encoder.embeddings."
    vocabulary, width = shapes[f"{start}word_embeddings.weight"]
    layer = "encoder.encoder.layer.{i}"
    words, wide = shapes["decoder.transformer.wte.weight"]
    return {
        "encoder": {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": shapes[f"{layer.format(i=0)}.intermediate.dense.weight"][0],
            "num_hidden_layers": shapes.count(layer),
            "num_attention_heads": max(1, width // 64),
            "max_position_embeddings": shapes[f"{start}position_embeddings.weight"][0],
            "type_vocab_size": shapes[f"{start}token_type_embeddings.weight"][0],
        },
        "decoder": {
            "vocab_size": words,
            "n_embd": wide,
            "n_layer": shapes.count("decoder.transformer.h.{i}"),
            "n_head": max(1, wide // 64),
            "n_positions": shapes["decoder.transformer.wpe.weight"][0],
            **dict(zip(("pad_token_id", "bos_token_id", "eos_token_id"), range(words - 3, words))),
        },
        "dim": shapes["moments.weight"][0] // 2,
    }


def _expected(settings: Settings) -> dict[str, tuple[int, ...]]:
    from torch import nn

    from everyway.codecs.optimus import parts

    sizes = {name: settings[name] for name in ("encoder", "decoder", "dim")}
    return shapes_of(lambda: nn.ModuleDict(parts(**sizes)))


def _preset(settings: Settings) -> str:
    sizes = settings["encoder"]["hidden_size"], settings["decoder"]["n_embd"], settings["dim"]
    return "BERT base and GPT-2 small" if sizes == (768, 768, 768) else ""


LAYOUTS = (
    FileLayout(
        name="optimus",
        origin="authors",
        part="text",
        component="text",
        system="versatile",
        marks=("encoder.linear.weight", "decoder.transformer.linear_emb.weight"),
        to_ours=lambda entries: tied(from_authors(entries)),
        to_theirs=to_authors,
        settings=_settings,
        expected=_expected,
        fits=lambda settings: "encoder" in settings,
        aside=(
            r"decoder\.transformer\.h\.\d+\.attn\.bias",
            r"encoder\.embeddings\.position_ids",
        ),
        optional=(r"decoder\.lm_head\.weight",),
        preset=_preset,
        file="optimus-vae.pth",
    ),
)
