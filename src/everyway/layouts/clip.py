"""CLIP's encoders in the files of transformers, and its text encoder as OpenAI names its tensors,
which files of other models hold whole.

Our names are transformers'.  A layer's q, k and v are one tensor in OpenAI's.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from everyway.checkpoints.tensor_files import Entries
from everyway.layouts.autoencoder import unwhitened
from everyway.layouts.file_layout import FileLayout, Settings, Shapes, shapes_of
from everyway.layouts.keymap import (
    Table,
    apart,
    inside,
    starts,
    to_ours,
    to_theirs,
    together,
    within,
    without,
)

TEXT_STATES = "states.model."
PROJECTION = "text_projection"
_OF_IMAGES = (r"vision_model\..*", r"visual_projection\.weight")
_OF_TEXTS = (r"text_model\..*", r"text_projection\.weight")
_COUNTED = (r".*embeddings\.position_ids", "logit_scale")


def _tower(shapes: Shapes, layers: str, given: Settings) -> dict[str, Any]:
    """Settings that both encoders have.  layers: our names of them, up to {i}."""
    width = shapes[f"{layers.format(i=0)}.layer_norm1.weight"][0]
    return {
        "hidden_size": width,
        "intermediate_size": shapes[f"{layers.format(i=0)}.mlp.fc1.weight"][0],
        "num_hidden_layers": shapes.count(layers),
        "num_attention_heads": int(given.get("num_attention_heads", max(1, width // 64))),
        "hidden_act": given.get("hidden_act", "quick_gelu"),
    }


# -- pictures ---------------------------------------------------------------------------------


def _image_settings(shapes: Shapes, given: Settings) -> dict[str, Any]:
    """Of an `ImageEmbedding`."""
    patch = shapes["model.vision_model.embeddings.patch_embedding.weight"][2]
    places = shapes["model.vision_model.embeddings.position_embedding.weight"][0]
    own = _tower(shapes, "model.vision_model.encoder.layers.{i}", given.get("vision_config", given))
    return {
        "vision": own
        | {
            "image_size": patch * round((places - 1) ** 0.5),
            "patch_size": patch,
            "projection_dim": shapes["model.visual_projection.weight"][0],
        }
    }


def _image_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    from everyway.codecs.encoders import ImageEmbedding

    made = shapes_of(lambda: ImageEmbedding(settings["vision"]))
    return {k: v for k, v in made.items() if not k.startswith("whiten.")}


def _image_config(settings: Settings) -> dict[str, Any]:
    own = {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}
    return own | dict(settings["vision"])


# -- texts ------------------------------------------------------------------------------------


def _modern(entries: Entries) -> Entries:
    """transformers 5 leaves `text_model.` out of the names; other files have it."""
    if any(name.startswith("text_model.") for name in entries):
        return entries
    return within("text_model.", entries)


def _ours_of_text(entries: Entries) -> Entries:
    return starts(entries, {"text_model.": TEXT_STATES + _infix()})


def _theirs_of_text(entries: Entries) -> Entries:
    return starts(entries, {TEXT_STATES + _infix(): "text_model."})


@cache
def _infix() -> str:
    """What the installed transformers puts before the names of a text encoder."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    marks = ("bos_token_id", "eos_token_id", "pad_token_id")
    tiny = {**dict.fromkeys(sizes, 1), **dict.fromkeys(marks, 0), "vocab_size": 1}
    names = _text_shapes({"text": tiny})
    return "text_model." if any(n.startswith("states.model.text_model.") for n in names) else ""


def _text_settings(shapes: Shapes, given: Settings) -> dict[str, Any]:
    """Of the `TextStates` in a `TextLatent`."""
    start = TEXT_STATES + _infix()
    own = _tower(shapes, start + "encoder.layers.{i}", given.get("text_config", given))
    vocabulary, width = shapes[f"{start}embeddings.token_embedding.weight"]
    return {
        "text": own
        | {
            "vocab_size": vocabulary,
            "max_position_embeddings": shapes[f"{start}embeddings.position_embedding.weight"][0],
            "projection_dim": width,
            **_marks(vocabulary),
        }
    }


def _marks(vocabulary: int) -> dict[str, int]:
    """The last two ids of CLIP's: the start mark, and the end mark, which also pads."""
    start, end = vocabulary - 2, vocabulary - 1
    return {"pad_token_id": end, "bos_token_id": start, "eos_token_id": end}


def _text_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    from everyway.codecs.encoders import TextStates

    return within("states.", shapes_of(lambda: TextStates(settings["text"])))


def _text_config(settings: Settings) -> dict[str, Any]:
    own = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    return own | dict(settings["text"])


# -- OpenAI's ---------------------------------------------------------------------------------

_LAYER: Table = (
    *((f"self_attn.in_proj_{p}", f"attn.in_proj_{p}") for p in ("weight", "bias")),
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)
KEYMAP: Table = (
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    *inside("text_model.encoder.layers.{i}", "transformer.resblocks.{i}", _LAYER),
    ("text_model.final_layer_norm", "ln_final"),
    (PROJECTION, PROJECTION),
)
"""(transformers', OpenAI's) names; transformers' with q, k and v together."""
_QKV = ("self_attn.in_proj_", "self_attn.{}_proj.")


def to_transformers(entries: Entries) -> Entries:
    """OpenAI's names -> transformers', with q, k and v apart."""
    return apart(to_ours(entries, KEYMAP), *_QKV)


def from_transformers(entries: Entries) -> Entries:
    """The inverse of `to_transformers`.  LayoutError for a layer that lacks its q, k or v."""
    return to_theirs(together(entries, *_QKV), KEYMAP)


def from_openai(entries: Entries) -> Entries:
    """OpenAI's names -> those of a `ClipText`."""
    return _around_projection(_ours_of_text, to_transformers(entries))


def to_openai(entries: Entries) -> Entries:
    """The inverse of `from_openai`."""
    return from_transformers(_around_projection(_theirs_of_text, entries))


def _around_projection(rename, entries: Entries) -> Entries:
    """All names but that of the projection changed."""
    projection = {k: v for k, v in entries.items() if k == PROJECTION}
    return rename({k: v for k, v in entries.items() if k != PROJECTION}) | projection


def _openai_settings(shapes: Shapes, given: Settings) -> dict[str, Any]:
    """Of a `ClipText`, all but its tokenizer."""
    return _text_settings(shapes, given) | {"projection": shapes.get(PROJECTION, (0, 0))[1]}


def _openai_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    shape = (settings["text"]["hidden_size"], settings["projection"])
    return _text_shapes(settings) | ({PROJECTION: shape} if shape[1] else {})


def _preset(settings: Settings) -> str:
    from everyway.codecs.clip_text import CLIP_B32_TEXT
    from everyway.codecs.encoders import CLIP_B32_VISION, CLIP_L14_TEXT, CLIP_L14_VISION

    if settings.get("vision") == CLIP_B32_VISION or settings.get("text") == CLIP_B32_TEXT:
        return "CLIP B/32"
    large = settings.get("vision") == CLIP_L14_VISION or settings.get("text") == CLIP_L14_TEXT
    return "CLIP L/14" if large else ""


# -- as contexts ------------------------------------------------------------------------------


def _context_settings(shapes: Shapes, given: Settings) -> dict[str, Any]:
    """Of a `TextContext`, all but its tokenizer."""
    start = "model.text_model."
    own = _tower(shapes, start + "encoder.layers.{i}", given.get("text_config", given))
    vocabulary = shapes[f"{start}embeddings.token_embedding.weight"][0]
    length = shapes[f"{start}embeddings.position_embedding.weight"][0]
    projected = shapes["model.text_projection.weight"][0]
    sizes = {"vocab_size": vocabulary, "max_position_embeddings": length}
    own |= sizes | _marks(vocabulary) | {"projection_dim": projected}
    return {"text": own, "length": length}


def _context_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from everyway.codecs.encoders import configured

    config = configured(CLIPTextConfig, settings["text"])
    return within("model.", shapes_of(lambda: CLIPTextModelWithProjection(config)))


def _image_context_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    from everyway.codecs.clip_contexts import ImageContext

    return shapes_of(lambda: ImageContext(settings["vision"]))


def _text_context_config(settings: Settings) -> dict[str, Any]:
    own = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
    return own | dict(settings["text"])


# -- the layouts ------------------------------------------------------------------------------

OPENAI = FileLayout(
    name="clip-text-openai",
    origin="authors",
    part="text_states",
    component="text",
    system="vq_diffusion",
    places=(TEXT_STATES, PROJECTION),
    marks=("token_embedding.weight", "ln_final.weight"),
    settings=_openai_settings,
    expected=_openai_shapes,
    to_ours=from_openai,
    to_theirs=to_openai,
    dropped=(r"visual\..*", "logit_scale"),
    fits=lambda settings: "decoder" not in settings,  # a text latent has one
    preset=_preset,
    file="clip_text.pth",
)
LAYOUTS = (
    FileLayout(
        name="clip-image",
        origin="diffusers",
        part="image_embed",
        component="image_embed",
        marks=("vision_model.embeddings.class_embedding", "visual_projection.weight"),
        settings=_image_settings,
        expected=_image_shapes,
        constants=lambda settings: unwhitened(settings["vision"]["projection_dim"]),
        to_ours=partial(within, "model."),
        to_theirs=partial(without, "model."),
        dropped=(*_COUNTED, *_OF_TEXTS),
        preset=_preset,
        file="image_encoder/model.safetensors",
        their_config=_image_config,
    ),
    FileLayout(
        name="clip-text",
        origin="diffusers",
        part="text_states",
        component="text",
        places=(TEXT_STATES,),
        marks=("text_model.embeddings.token_embedding.weight",),
        modern=_modern,
        settings=_text_settings,
        expected=_text_shapes,
        to_ours=_ours_of_text,
        to_theirs=_theirs_of_text,
        dropped=(*_COUNTED, *_OF_IMAGES, r"text_projection\.weight"),
        preset=_preset,
        file="text_encoder/model.safetensors",
        their_config=_text_config,
    ),
)

_CONTEXT: dict[str, Any] = {
    "origin": "diffusers",
    "system": "versatile",
    "to_ours": partial(within, "model."),
    "to_theirs": partial(without, "model."),
    "aside": _COUNTED,
    "preset": _preset,
}
CONTEXTS = (
    FileLayout(
        name="clip-image-context",
        part="image_condition",
        component="image_condition",
        marks=("vision_model.embeddings.class_embedding", "visual_projection.weight"),
        settings=_image_settings,
        expected=_image_context_shapes,
        dropped=_OF_TEXTS,
        file="image_encoder/model.safetensors",
        their_config=_image_config,
        **_CONTEXT,
    ),
    FileLayout(
        name="clip-text-context",
        part="text_condition",
        component="text_condition",
        marks=("text_model.embeddings.token_embedding.weight", "text_projection.weight"),
        settings=_context_settings,
        expected=_context_shapes,
        dropped=_OF_IMAGES,
        file="text_encoder/model.safetensors",
        their_config=_text_context_config,
        **_CONTEXT,
    ),
)
"""A picture and a text as Versatile Diffusion is given them."""
