"""Files of published layouts for tests: names and shapes of every one, filled by the formula.

`full` are the released sizes, whose tensors exist only while they are read; `tiny` are whole small
files of the same layouts.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from everyway.checkpoints.tensor_files import Entries, Stored
from everyway.layouts import unidiffuser as unidiffuser_layouts
from everyway.layouts import uvit as uvit_layouts
from everyway.layouts.keymap import to_theirs
from everyway.nets.uvit import UViT, UViTConfig
from everyway.systems import uvit
from formula import filled

TIED = {
    "gpt.lm_head.weight": "gpt.transformer.wte.weight",
    "transformer.lm_head.weight": "transformer.transformer.wte.weight",
}
Shapes = dict[str, tuple[int, ...]]


def value(name: str, shape: tuple[int, ...]) -> Tensor:
    return filled(TIED.get(name, name), shape)


def stored(shapes: Shapes, dtype: torch.dtype = torch.float32) -> Entries:
    """Every tensor made when it is read."""

    def one(name: str, shape: tuple[int, ...]) -> Stored:
        def load(wanted: torch.dtype | None) -> Tensor:
            return value(name, shape).to(wanted or dtype)

        return Stored(shape=shape, dtype=dtype, load=load)

    return {name: one(name, tuple(shape)) for name, shape in shapes.items()}


def network_shapes(config: UViTConfig, table) -> Shapes:
    with torch.device("meta"):
        network = UViT(config)
    return to_theirs({k: tuple(v.shape) for k, v in network.state_dict().items()}, table)


def autoencoder_shapes(widths: tuple[int, ...], latent: int = 4, layers: int = 2) -> Shapes:
    """The authors' names, written out."""
    out: Shapes = {}

    def conv(name: str, there: int, here: int, side: int = 3) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (there, here, side, side), (there,)

    def norm(name: str, width: int) -> None:
        out[f"{name}.weight"] = out[f"{name}.bias"] = (width,)

    def block(name: str, here: int, there: int) -> None:
        norm(f"{name}.norm1", here)
        conv(f"{name}.conv1", there, here)
        norm(f"{name}.norm2", there)
        conv(f"{name}.conv2", there, there)
        if here != there:
            conv(f"{name}.nin_shortcut", there, here, 1)

    def middle(name: str, width: int) -> None:
        block(f"{name}.block_1", width, width)
        norm(f"{name}.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", width, width, 1)
        block(f"{name}.block_2", width, width)

    conv("encoder.conv_in", widths[0], 3)
    here = widths[0]
    for level, width in enumerate(widths):
        for n in range(layers):
            block(f"encoder.down.{level}.block.{n}", here, width)
            here = width
        if level + 1 < len(widths):
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder.mid", here)
    norm("encoder.norm_out", here)
    conv("encoder.conv_out", 2 * latent, here)
    conv("quant_conv", 2 * latent, 2 * latent, 1)
    conv("post_quant_conv", latent, latent, 1)
    conv("decoder.conv_in", here, latent)
    middle("decoder.mid", here)
    for level, width in reversed(list(enumerate(widths))):
        for n in range(layers + 1):
            block(f"decoder.up.{level}.block.{n}", here, width)
            here = width
        if level:
            conv(f"decoder.up.{level}.upsample.conv", width, width)
    norm("decoder.norm_out", here)
    conv("decoder.conv_out", 3, here)
    return out


def caption_shapes(
    width: int, layers: int, vocabulary: int, dim: int, gpt: str = "gpt", positions: int = 1024
) -> Shapes:
    """The authors' names (gpt="gpt") or diffusers' ("transformer"), written out."""
    out: Shapes = {
        "encode_prefix.weight": (dim, width),
        "encode_prefix.bias": (dim,),
        "decode_prefix.weight": (width, dim),
        "decode_prefix.bias": (width,),
        f"{gpt}.transformer.wte.weight": (vocabulary, width),
        f"{gpt}.transformer.wpe.weight": (positions, width),
        f"{gpt}.transformer.ln_f.weight": (width,),
        f"{gpt}.transformer.ln_f.bias": (width,),
        f"{gpt}.lm_head.weight": (vocabulary, width),
    }
    wide = {"attn.c_attn": 3, "attn.c_proj": 1, "mlp.c_fc": 4}
    for n in range(layers):
        layer = f"{gpt}.transformer.h.{n}"
        for norm in ("ln_1", "ln_2"):
            out[f"{layer}.{norm}.weight"] = out[f"{layer}.{norm}.bias"] = (width,)
        for part, times in wide.items():  # of GPT-2, stored as (in, out)
            out[f"{layer}.{part}.weight"] = (width, times * width)
            out[f"{layer}.{part}.bias"] = (times * width,)
        out[f"{layer}.mlp.c_proj.weight"] = (4 * width, width)
        out[f"{layer}.mlp.c_proj.bias"] = (width,)
    return out


def diffusers_shapes(config: UViTConfig) -> Shapes:
    with torch.device("meta"):
        state = UViT(config).state_dict()
    return {k: tuple(v.shape) for k, v in unidiffuser_layouts.to_diffusers(state).items()}


def full() -> dict[str, tuple[str, Shapes]]:
    """The released file -> (its layout, names and shapes)."""
    published = unidiffuser_layouts.published
    tables = {
        f"uvit_{n}": ("uvit", network_shapes(c, uvit_layouts.KEYMAP))
        for n, c in uvit.PRESETS.items()
    }
    for version in (0, 1):
        shapes = network_shapes(published(version=version), unidiffuser_layouts.KEYMAP)
        tables[f"unidiffuser_v{version}"] = ("unidiffuser", shapes)
    return tables | {
        "diffusers_unidiffuser_model_v1": (
            "unidiffuser-diffusers",
            diffusers_shapes(published(version=1)),
        ),
        "autoencoder_kl": ("autoencoder-kl", autoencoder_shapes((128, 256, 512, 512))),
        "caption_decoder": ("caption-decoder", caption_shapes(768, 12, 50258, 64)),
        "diffusers_unidiffuser_text_decoder": (
            "caption-decoder-diffusers",
            caption_shapes(768, 12, 50258, 64, "transformer"),
        ),
    }


# -- tiny files -------------------------------------------------------------------------------

WORDS = ("a", "fox", "on", "blue", "red", "green", "left", "of")
SIZES = dict(size=8, text=(77, 16), embed_dim=32, dim=64, depth=4, heads=1)


def tokenizer(marks: tuple[str, ...]) -> str:
    """The JSON of a tokenizer of whole words, with `marks` as its last ids."""
    model = {"type": "WordLevel", "vocab": {w: i for i, w in enumerate((*WORDS, *marks))}}
    spec = {"version": "1.0", "model": model | {"unk_token": WORDS[0]}}
    spec["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    first = len(WORDS)
    spec["added_tokens"] = [
        {"id": first + n, "content": mark, "special": True, **added} for n, mark in enumerate(marks)
    ]
    return json.dumps(spec)


CLIP_TOKENS = tokenizer(("<|startoftext|>", "<|endoftext|>"))
GPT2_TOKENS = tokenizer(("<|endoftext|>",))  # the end mark of captions is added to it
TEXT_VOCABULARY, READER_VOCABULARY = len(WORDS) + 2, len(WORDS) + 2


def tiny_network(version: int = 1) -> dict[str, Tensor]:
    config = unidiffuser_layouts.published(version=version, **SIZES)
    return read(stored(network_shapes(config, unidiffuser_layouts.KEYMAP)))


def tiny_autoencoder() -> dict[str, Tensor]:
    return read(stored(autoencoder_shapes((32, 32, 32, 64), layers=1)))


def tiny_caption() -> dict[str, Tensor]:
    """With the prefix of the released file, an old buffer of its mask, and CLIP's tensors."""
    own = read(stored(caption_shapes(64, 2, READER_VOCABULARY, 16, positions=160)))
    for n in range(2):
        layer = f"gpt.transformer.h.{n}.attn"
        own[f"{layer}.bias"] = torch.ones(1, 1, 160, 160, dtype=torch.uint8).tril()
        own[f"{layer}.masked_bias"] = torch.tensor(-1e4)
    own["clip.visual.proj"] = torch.ones(3, 2)
    return {f"module.{k}": v for k, v in own.items()}


def tiny_clip(kind: str):
    """transformers' text or image encoder with weights."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1)
    torch.manual_seed(0)
    if kind == "text":
        marks = dict(bos_token_id=8, eos_token_id=9, pad_token_id=9)
        config = CLIPTextConfig(
            vocab_size=TEXT_VOCABULARY, max_position_embeddings=77, **sizes, **marks
        )
        return CLIPTextModel(config).eval()
    config = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=32, **sizes)
    return CLIPVisionModelWithProjection(config).eval()


def read(entries: Entries) -> dict[str, Tensor]:
    return {name: entry.read() for name, entry in entries.items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Names, number formats and bytes."""
    return found.keys() == expected.keys() and all(
        found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in expected.items()
    )


def write_tiny_files(folder: Path) -> None:
    """UniDiffuser v1 as the authors' files, tiny; tokenizers are the caller's to add."""
    torch.save(tiny_network(1), folder / "uvit_v1.pth")
    torch.save(tiny_autoencoder(), folder / "autoencoder_kl.pth")
    torch.save(tiny_caption(), folder / "caption_decoder.pth")
    for kind in ("image", "text"):
        tiny_clip(kind).save_pretrained(folder / f"clip-{kind}")


def tiny_parts(folder: Path, tokenizer: str, reader: str) -> dict[str, str]:
    """Part -> path of what the network of `write_tiny_files` lacks, tokenizers included."""
    names = {
        "image": "autoencoder_kl.pth",
        "image_embed": "clip-image",
        "text": "caption_decoder.pth",
        "text_states": "clip-text",
        "tokenizer": tokenizer,
        "reader": reader,
    }
    return {part: str(folder / name) for part, name in names.items()}
