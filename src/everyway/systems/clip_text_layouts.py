"""CLIP's text encoder as OpenAI names its tensors, which files of other models hold whole.

A layer's q, k and v are one tensor there.  Ours are transformers' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from everyway.checkpoints.foreign import Shapes
from everyway.checkpoints.keymap import LayoutError, Table, to_ours, to_theirs
from everyway.checkpoints.tensor_files import Entries, joined
from everyway.systems import unidiffuser_codec_layouts as codecs
from everyway.systems.uvit_layouts import both

Settings = Mapping[str, Any]
PROJECTION = "text_projection"
_LAYER = (
    *((f"self_attn.in_proj_{p}", f"attn.in_proj_{p}") for p in ("weight", "bias")),
    *both("self_attn.out_proj", "attn.out_proj"),
    *both("layer_norm1", "ln_1"),
    *both("layer_norm2", "ln_2"),
    *both("mlp.fc1", "mlp.c_fc"),
    *both("mlp.fc2", "mlp.c_proj"),
)
KEYMAP: Table = (
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    *((f"text_model.encoder.layers.{{i}}.{a}", f"transformer.resblocks.{{i}}.{b}")
      for a, b in _LAYER),
    *both("text_model.final_layer_norm", "ln_final"),
    (PROJECTION, PROJECTION),
)  # fmt: skip
"""(transformers', OpenAI's) names; transformers' with q, k and v together."""

_APART = re.compile(r"(.*\.self_attn\.)([qkv])_proj\.(weight|bias)")


def to_transformers(entries: Entries) -> Entries:
    """OpenAI's names -> transformers', with q, k and v apart."""
    out = {}
    for name, entry in to_ours(entries, KEYMAP).items():
        if ".self_attn.in_proj_" in name:
            for part, rows in zip("qkv", entry.chunk(3)):
                out[name.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            out[name] = entry
    return out


def from_transformers(entries: Entries) -> Entries:
    """The inverse of `to_transformers`.  LayoutError for a layer that lacks its q, k or v."""
    out: Entries = {}
    parts: dict[str, Entries] = {}
    for name, entry in entries.items():
        if match := _APART.fullmatch(name):
            fused = f"{match[1]}in_proj_{match[3]}"
            parts.setdefault(fused, {})[match[2]] = entry
        else:
            out[name] = entry
    if broken := sorted(name for name, three in parts.items() if set(three) != set("qkv")):
        raise LayoutError(f"the file lacks q, k or v of {', '.join(broken[:8])}")
    out |= {name: joined([three[p] for p in "qkv"]) for name, three in parts.items()}
    return to_theirs(out, KEYMAP)


def from_openai(entries: Entries) -> Entries:
    """OpenAI's names -> those of a `ClipText`."""
    named = to_transformers(entries)
    projection = {k: named.pop(k) for k in (PROJECTION,) if k in named}
    return codecs.clip_text_to_ours(named) | projection


def to_openai(entries: Entries) -> Entries:
    """The inverse of `from_openai`."""
    named = dict(entries)
    projection = {k: named.pop(k) for k in (PROJECTION,) if k in named}
    return from_transformers(codecs.clip_text_to_theirs(named) | projection)


def settings(shapes: Shapes, told: Settings) -> dict[str, Any]:
    """Of a `ClipText`, all but its tokenizer."""
    _, width = shapes.get(PROJECTION, (0, 0))
    return codecs.clip_text_settings(shapes, told) | {"projection": width}


def expected(settings: Settings) -> dict[str, tuple[int, ...]]:
    shape = (settings["text"]["hidden_size"], settings["projection"])
    return codecs.clip_text_shapes(settings) | ({PROJECTION: shape} if shape[1] else {})


def preset(settings: Settings) -> str:
    from everyway.codecs.clip_text import CLIP_B32_TEXT

    return "CLIP B/32" if settings["text"] == CLIP_B32_TEXT else ""
