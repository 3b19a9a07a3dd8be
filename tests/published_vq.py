"""Files of VQ-Diffusion for tests: names, shapes and number formats of every one, filled by the
formula.

`whole` are the released sizes, whose tensors exist only while they are read; `tiny` are small files
of the same layouts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from everyway.checkpoints.tensor_files import Entries, Stored, held
from everyway.layouts import vq_codec as vq_codec_layouts
from everyway.layouts import vq_network as vq_network_layouts
from everyway.nets.token_transformer import TokenTransformerConfig
from everyway.systems import vq_diffusion
from formula import filled
from published import WORDS, tokenizer

GOLDEN = Path(__file__).parent / "golden"
Shapes = dict[str, tuple[int, ...]]
MODELS = {
    "coco": ("author_coco_text_base", "openimages"),
    "cub200": ("author_cub200_text_base", "openimages"),
    "coco_learnable": ("author_coco_learnable", "openimages"),
    "ithq": ("author_ithq_learnable", "ithq"),
    "imagenet": ("author_imagenet_class", "imagenet"),
    "imagenet_learnable": ("author_imagenet_learnable_class1001", "imagenet"),
    "ffhq": ("author_ffhq_uncond", "ffhq"),
}
"""Released model -> (layout of all but its codec, its codec)."""
COPIES = {f"content_codec.dec.quantize.{k}": f"content_codec.enc.quantize.{k}" for k in (
    "embedding", "embedding.weight", "cluster_size", "embedding_avg",
    "proj.weight", "proj.bias", "embed.weight",
)}  # fmt: skip
HALF = re.compile(
    r"(transformer\.)?condition_emb\."
    r"(text_projection|transformer\.resblocks\.\d+\.(attn\.(in|out)_proj.*|mlp\..*))"
)


def _layouts(family: str) -> dict[str, dict]:
    return json.loads((GOLDEN / family / "layouts.json").read_text(encoding="utf-8"))


NETWORKS, CODECS = _layouts("vq"), _layouts("vq_codec")


def network_shapes(layout: str) -> Shapes:
    """A stored layout, `{n}` in a name standing for 0 .. n - 1."""
    shapes = {}
    for template, shape in NETWORKS[layout].items():
        found = re.search(r"\{(\d+)\}", template)
        for i in range(int(found[1])) if found else [None]:
            name = template if i is None else template.replace(found[0], str(i))
            shapes[name] = tuple(shape)
    return shapes


def codec_shapes(codec: str) -> Shapes:
    return {k: tuple(int(n) for n in v.split("x")) for k, v in CODECS[codec].items()}


def dtype_of(name: str) -> torch.dtype:
    """As the released files have them."""
    if HALF.fullmatch(name):
        return torch.float16
    return torch.float64 if name.endswith("empty_text_embed") else torch.float32


def stored(shapes: Shapes, derived: Entries | None = None) -> Entries:
    """Every tensor made when it is read.  derived: name in the file -> what it must hold."""

    def one(name: str, shape: tuple[int, ...]) -> Stored:
        if name in (derived or {}):
            return derived[name]
        own, key = dtype_of(name), COPIES.get(name, name).removeprefix("transformer.")

        def load(wanted: torch.dtype | None) -> Tensor:
            value = filled(key, shape)
            return (value.abs() if "Lt_" in key else value).to(wanted or own)

        return Stored(shape=shape, dtype=own, load=load)

    return {name: one(name, shape) for name, shape in shapes.items()}


def whole(name: str) -> Entries:
    """The "model" of a released file."""
    layout, codec = MODELS[name]
    shapes = network_shapes(layout) | codec_shapes(f"inside_{codec}")
    return stored(shapes, _derived(vq_diffusion.PRESETS[name]))


def _derived(config: TokenTransformerConfig) -> Entries:
    own = vq_network_layouts.derived(config.to_json())
    return {f"transformer.{k}": v for k, v in own.items() if "Lt_" not in k}


# -- tiny files -------------------------------------------------------------------------------

MARKS = ("<|startoftext|>", "<|endoftext|>")
TOKENS = tokenizer(MARKS)
VOCABULARY = len(WORDS) + len(MARKS)
CODES = 40
"""Of a tiny codec."""
USED = {"text": 24, "class": 24, "none": CODES}
"""Of them in use, by what it is conditioned on."""


def tiny_config(given: str, null: bool = False) -> TokenTransformerConfig:
    """The released networks' shape at a tiny size."""
    sizes = dict(codes=USED[given], dim=32, depth=2, heads=16, condition=given, learned_null=null)
    if given == "text":
        return TokenTransformerConfig(side=8, text_length=77, text_dim=64, **sizes)
    labels = {"class": 1001 if null else 12, "none": 0}[given]
    return TokenTransformerConfig(side=4, table_side=8, mlp="conv", labels=labels, **sizes)


def tiny_model(given: str, null: bool = False, kind: str = "gumbel") -> dict[str, Tensor]:
    """The "model" of a released file at a tiny size."""
    config = tiny_config(given, null)
    network = vq_network_layouts.to_authors(
        {k: _meta(shape) for k, shape in vq_network_layouts.expected(config.to_json()).items()}
    )
    shapes = {f"transformer.{k}": v.shape for k, v in network.items()}
    own = vq_network_layouts.derived(config.to_json())
    shapes |= {f"transformer.{k}": v.shape for k, v in own.items()}
    inside = vq_codec_layouts.into_whole({k: _meta(v) for k, v in tiny_codec_shapes(kind).items()})
    shapes |= {f"content_codec.{k}": v.shape for k, v in inside.items()}
    if given == "text":
        sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96}
        sizes |= {"num_hidden_layers": 2, "max_position_embeddings": 77}
        text = clip_shapes(sizes, 64)
        shapes |= {f"transformer.condition_emb.{k}": v for k, v in text.items()}
    return {k: v.read() for k, v in stored(shapes, _derived(config)).items()}


def tiny_codec_shapes(kind: str) -> Shapes:
    """The authors' names."""
    config = vq_diffusion.codec_of((32, 64), kind, CODES, 8, z=16, layers=1)
    ours = {k: _meta(v) for k, v in vq_codec_layouts.expected(config).items()}
    return {k: v.shape for k, v in vq_codec_layouts.to_authors(kind, ours).items()}


def tiny_codec(kind: str) -> dict[str, Tensor]:
    return {k: v.read() for k, v in stored(tiny_codec_shapes(kind)).items()}


def clip_shapes(text: Mapping[str, int], projection: int) -> Shapes:
    """OpenAI's names of a text tower with its projection, written out."""
    width, inner = text["hidden_size"], text["intermediate_size"]
    out = {
        "token_embedding.weight": (text["vocab_size"], width),
        "positional_embedding": (text["max_position_embeddings"], width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, projection),
    }
    wide = {"attn.out_proj": (width, width), "mlp.c_fc": (inner, width)}
    for n in range(text["num_hidden_layers"]):
        layer = f"transformer.resblocks.{n}"
        out[f"{layer}.attn.in_proj_weight"] = (3 * width, width)
        out[f"{layer}.attn.in_proj_bias"] = (3 * width,)
        for name, (there, here) in {**wide, "mlp.c_proj": (width, inner)}.items():
            out[f"{layer}.{name}.weight"], out[f"{layer}.{name}.bias"] = (there, here), (there,)
        for name in ("ln_1", "ln_2"):
            out[f"{layer}.{name}.weight"] = out[f"{layer}.{name}.bias"] = (width,)
    return out


def averages(model: dict[str, Tensor], scale: float = 0.5) -> dict[str, Tensor]:
    """An "ema" of a "model": its weights scaled, so that one can tell which was taken."""
    start = "transformer."
    own = {k.removeprefix(start): v for k, v in model.items() if k.startswith(start)}
    return {k: v.clone() if is_derived(k) else v * scale for k, v in own.items()}


def is_derived(name: str) -> bool:
    """Whether a tensor of the network is no weight: it follows from the config, or is a history."""
    own = vq_network_layouts
    pattern = own.MASK.replace(".", r"\.").format(i=r"\d+")
    return name in (*own.SCHEDULE, *own.HISTORY) or bool(re.fullmatch(pattern, name))


def _meta(shape: tuple[int, ...]) -> Stored:
    return held(torch.empty(shape, device="meta"))
