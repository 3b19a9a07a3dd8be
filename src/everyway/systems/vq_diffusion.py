"""Improved VQ-Diffusion: pictures as tokens, masked and replaced; on a text, a class or nothing.

One state, the image's tokens, on the clock `image`.  Guidance takes the network's own null
("learned"; for classes the last label, or the table's mean), or an empty text ("empty": zero-shot).
`published` has the released models, with the settings that they were released with.

Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Tang et al., "Improved Vector Quantized Diffusion Models", 2022, arXiv 2205.16007.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from everyway.checkpoints import codec_folder, store
from everyway.checkpoints.tensor_files import LayoutError
from everyway.codecs import bundle
from everyway.codecs.cell_vq import CellVQ
from everyway.codecs.clip_text import CLIP_B32_TEXT
from everyway.codecs.image_vq import shrinks
from everyway.codecs.pca import cells_a_side
from everyway.codecs.plain import Labels
from everyway.contracts import Context
from everyway.errors import UsageError
from everyway.nets.token_transformer import TokenTransformer, TokenTransformerConfig
from everyway.nets.tokens import ContextTokens, Ids, Label, TimeToken
from everyway.nets.uvit import UViT, UViTConfig
from everyway.process.mask_replace import ABSORBING, PAPER, RELEASED, UNIFORM, MaskReplace
from everyway.process.training_times import Importance, Tokens
from everyway.settings import ConfigError, Settings
from everyway.system import Condition, Modality, Null, System, dropped, labelled
from everyway.systems import MissingParts, TrainingData
from everyway.systems.published_codecs import fresh
from everyway.tasks import drawing
from everyway.validation import checked

RATES = {"released": RELEASED, "paper": PAPER, "absorbing": ABSORBING, "uniform": UNIFORM}
NETWORKS: dict[str, tuple[type[nn.Module], Callable[[Mapping[str, Any]], Any]]] = {
    "transformer": (TokenTransformer, TokenTransformerConfig.from_json),
    "uvit": (UViT, UViTConfig.from_json),
}
"""kind -> (class, its config from plain data)."""
TEXTS = {"latent": "TextLatent", "clip": "ClipText"}
"""text_kind -> the kind of the text codec where its settings name none (`bundle.MODULES`)."""


@dataclass(frozen=True, kw_only=True)
class VQDiffusionConfig:
    """Sizes of one VQ-Diffusion.

    kind: of the network, a name in NETWORKS.  network: its config as plain data; it also says what
    the network is conditioned on: a context "text", a "label", or nothing.
    codec: settings of its ImageVQ, or of another kind of `bundle.MODULES`.
    text: settings of the text codec, whose latent is the context.
    text_kind: of the text codec, a name in TEXTS.
    shared: component -> the shipped model that has its weights, and after an "@" their sha256.
    rates: a name in RATES.  steps, auxiliary: of the process.
    sampler, guidance, truncation, sample_steps: how it is sampled by default.
    """

    network: Mapping[str, Any]
    codec: Mapping[str, Any]
    kind: str = "transformer"
    text: Mapping[str, Any] = field(default_factory=dict)
    text_kind: str = "latent"
    shared: Mapping[str, str] = field(default_factory=dict)
    rates: str = "released"
    steps: int = 100
    auxiliary: float = 5e-4
    guidance: float = 3.0
    sampler: str = "purity"
    truncation: float = 1.0
    sample_steps: int = 25

    def __post_init__(self) -> None:
        checked(self)
        for name, known in (("kind", NETWORKS), ("rates", RATES), ("text_kind", TEXTS)):
            if getattr(self, name) not in known:
                wrong = f"{name} {getattr(self, name)!r} is unknown"
                raise UsageError(f"{wrong}; choose {', '.join(known)}")

    @property
    def condition(self) -> str:
        """The context that the network is conditioned on: "text", "label" or ""."""
        if self.kind == "transformer":
            return {"text": "text", "class": "label", "none": ""}[self.network["condition"]]
        kinds = {row["kind"] for row in self.network["layout"]}
        return "text" if "ContextTokens" in kinds else "label" if "Label" in kinds else ""


def uvit(
    *, side: int, codes: int, text: tuple[int, int] = (0, 0), labels: int = 0, **sizes: Any
) -> UViTConfig:
    """U-ViT over tokens: time, text (length, width) or label, and picture in one sequence."""
    condition: tuple = ()
    if text[0]:
        condition = (ContextTokens(name="text", length=text[0], dim=text[1], null=True),)
    elif labels:
        condition = (Label(name="label", classes=labels),)
    layout = (TimeToken(clock="image"), *condition, Ids(name="image", side=side, codes=codes))
    return UViTConfig(layout=layout, time_mlp=True, conv=False, init="unit", **sizes)


def mini(
    codec: Mapping[str, Any], text: Mapping[str, Any], shared: Mapping[str, str]
) -> VQDiffusionConfig:
    """`mini-vq`: 96x96 pictures as nine tokens, as many tokens as a codec has that was fitted to a
    folder, or with an `ImageVQ` 64x64 pictures as 8x8 tokens; given a text latent; about 3 million
    parameters.

    codec, text: settings of the codecs.  shared: as of `VQDiffusionConfig`.
    """
    fitted = "cell" in codec
    side = cells_a_side(codec) if fitted else 8
    network = uvit(
        side=side,
        codes=codec["codes"] if fitted else codec["quantiser"]["codes"],
        text=(text["length"], text["dim"]),
        dim=192,
        depth=4,
        heads=6,
    )
    return VQDiffusionConfig(
        kind="uvit",
        network=network.to_json(),
        codec=codec,
        text=text,
        shared=shared,
        guidance=1.5 if fitted else 3.0,
        sample_steps=min(side**2, 25),  # of nine tokens one a step
    )


def read(config: Mapping[str, Any] | VQDiffusionConfig) -> VQDiffusionConfig:
    return config if isinstance(config, VQDiffusionConfig) else VQDiffusionConfig(**config)


def build(config: Mapping[str, Any] | VQDiffusionConfig) -> System:
    """The system with fresh weights.  config: a VQDiffusionConfig, or the plain data of one.

    Raises ValueError where a part is missing, and where network and codec do not fit each other.
    """
    config = read(config)
    kind, network_config = NETWORKS[config.kind]
    if parts := missing_parts(config):
        raise MissingParts(parts, "parts")
    network = kind(checked(network_config(config.network)))
    picture = bundle.codec("image", config.codec, "ImageVQ")
    side, codes = grid_of(network.config)
    if codes != picture.classes:
        raise UsageError(f"the network is of {codes} codes, the codec of {picture.classes}")
    process = MaskReplace(
        classes=codes, steps=config.steps, rates=RATES[config.rates], auxiliary=config.auxiliary
    )
    image = Modality(name="image", clock="image", shape=(side**2,), process=process, codec=picture)
    return System(
        name="vq_diffusion",
        network=network,
        modalities={"image": image},
        tasks=drawing(config.condition),
        config=asdict(config),
        conditions=CONDITIONS[config.condition](network, config),
        shared=config.shared,
        sampler=config.sampler,
        guidance=config.guidance,
        steps=config.sample_steps,
        truncation=config.truncation,
    )


def grid_of(network: TokenTransformerConfig | UViTConfig) -> tuple[int, int]:
    """(tokens in a row, codes) of either network."""
    if isinstance(network, TokenTransformerConfig):
        return network.side, network.codes
    (ids,) = (s for s in network.layout if isinstance(s, Ids))
    return ids.side, ids.codes


def text_condition(network: nn.Module, config: VQDiffusionConfig) -> dict[str, Condition]:
    """A text, with the network's learned null if any, and the zero-shot one of an empty text."""
    codec = bundle.codec("text", config.text, TEXTS[config.text_kind])
    nothing = Null(make=lambda: Context(tokens=codec.latent(codec.tokens.nothing(1))), codec=codec)
    nulls = {"empty": nothing}
    if shape := learned(network):
        nulls = {"learned": dropped(*shape), **nulls}
    return {"text": Condition(name="text", source="text", codec=codec, nulls=nulls)}


def learned(network: nn.Module) -> tuple[int, int] | None:
    """(tokens, width) of the text that a network learned to stand for none, if it did."""
    if isinstance(network, TokenTransformer):
        own = network.config
        return (own.text_length, own.text_dim) if own.learned_null else None
    (text,) = (s for s in network.config.layout if isinstance(s, ContextTokens))
    return (text.length, text.dim) if text.null else None


def label_condition(network: nn.Module, config: VQDiffusionConfig) -> dict[str, Condition]:
    """A class by its number."""
    classes = labels_of(network)
    null = network.null_label if isinstance(network, TokenTransformer) else classes
    nulls, codec = {"learned": labelled(null)}, Labels(classes=classes)
    return {"label": Condition(name="label", source="label", codec=codec, nulls=nulls)}


def labels_of(network: nn.Module) -> int:
    """How many classes there are, a null's not counted."""
    if isinstance(network, TokenTransformer):
        return network.config.labels - network.config.learned_null
    (label,) = (s for s in network.config.layout if isinstance(s, Label))
    return label.classes - 1


CONDITIONS = {"text": text_condition, "label": label_condition, "": lambda network, config: {}}


# -- published --------------------------------------------------------------------------------

_BASE = TokenTransformerConfig(codes=2887, side=32, dim=1024, depth=19, heads=16, condition="text")
_BASE_NULL = replace(_BASE, learned_null=True)
_ITHQ = replace(_BASE_NULL, codes=4096, dim=1408, depth=36)
_FFHQ = TokenTransformerConfig(
    codes=1024, side=16, table_side=32, dim=512, depth=20, heads=16, mlp="conv"
)
_IMAGENET = replace(_FFHQ, codes=974, depth=24, condition="class", labels=1000)
# Known of the paper's small network, whose weights were not released: 18 blocks, width 192,
# convolutional MLPs of ratio 2, 34M parameters.  Inferred: 16 heads, and all else, as of the base;
# the count is then 34.3 * 2^20, just as the base's "370M" is 370.8 * 2^20.
_SMALL = replace(_BASE, dim=192, depth=18, mlp="conv", mlp_ratio=2)

PRESETS: dict[str, TokenTransformerConfig] = {
    "coco": _BASE,  # 388,780,871
    "cc": _BASE,
    "cub200": _BASE,
    "human": _BASE,
    "coco_learnable": _BASE_NULL,  # 388,820,295
    "cc_learnable": _BASE_NULL,
    "ithq": _ITHQ,  # 1,359,314,048
    "imagenet": _IMAGENET,  # 518,025,678
    "imagenet_learnable": replace(_IMAGENET, labels=1001, learned_null=True),  # 518,037,966
    "ffhq": _FFHQ,  # 411,185,664
    "small": _SMALL,  # 35,936,647
}
"""Released networks, and the paper's small one; parameter counts are of the released layouts."""


def preset_of(network: Mapping[str, Any]) -> str:
    """The first of PRESETS that it is, "" for others; captions' base models are one network."""
    return next((name for name, c in PRESETS.items() if c.to_json() == dict(network)), "")


def codec_of(
    widths: Sequence[int], kind: str, codes: int, dim: int, z: int = 256, layers: int = 2
) -> dict[str, Any]:
    """Settings of an `ImageVQ` as published, at any size for tests.

    widths: channels of each level.  kind: of the quantiser.  dim: of a code.  z: channels between.
    """
    down = ["DownEncoderBlock2D"] * (len(widths) - 1) + ["AttnDownEncoderBlock2D"]
    up = ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (len(widths) - 1)
    both_sides = {
        "block_out_channels": list(widths),
        "layers_per_block": layers,
        "norm_num_groups": 32,
    }
    return {
        "encoder": {"in_channels": 3, "out_channels": z, "down_block_types": down} | both_sides,
        "decoder": {"in_channels": z, "out_channels": 3, "up_block_types": up} | both_sides,
        "quantiser": {"kind": kind, "codes": codes, "dim": dim},
    }


OPENIMAGES = codec_of((128, 128, 256, 512), "gumbel", 8192, 256)
"""f8, of the models of captions; 2887 of its codes are in use there."""
IMAGENET = codec_of((128, 128, 256, 256, 512), "nearest", 16384, 256)
"""f16, of the model of classes; 974 of its codes are in use there."""
FFHQ = codec_of((128, 128, 256, 256, 512), "nearest", 1024, 256)
"""f16, of the model of faces."""
ITHQ = codec_of((64, 128, 256, 512), "ema", 4096, 128)
"""f8, of the improved models."""

CODECS: dict[str, Mapping[str, Any]] = {
    "coco": OPENIMAGES,
    "cc": OPENIMAGES,
    "cub200": OPENIMAGES,
    "human": OPENIMAGES,
    "coco_learnable": OPENIMAGES,
    "cc_learnable": OPENIMAGES,
    "ithq": ITHQ,
    "imagenet": IMAGENET,
    "imagenet_learnable": IMAGENET,
    "ffhq": FFHQ,
}
"""Released model -> settings of its codec."""
SAMPLED: dict[tuple[str, bool], tuple[float, float]] = {
    ("text", False): (1.0, 0.86),
    ("text", True): (3.0, 1.0),
    ("class", False): (1.0, 0.86),
    ("class", True): (1.5, 0.94),
    ("none", False): (1.0, 0.86),
}
"""(condition, learned null) -> the (guidance, truncation) that such models were released with."""
GUIDANCE = {"ithq": 5.0, "cc_learnable": 5.0}
"""Of the two that differ from models of their kind."""
CLIP = "hf:openai/clip-vit-base-patch32"
"""Where the text tower and its tokenizer are published."""
IMAGE_SIZE = 256
"""Side in pixels of what every released model draws."""


def published(
    name: str, tokenizer: str = "", used: Sequence[int] | str | None = None
) -> VQDiffusionConfig:
    """A released model: coco, cc, cub200, human, coco_learnable, cc_learnable, ithq, imagenet,
    imagenet_learnable or ffhq.

    tokenizer: the JSON of CLIP's tokenizer, for models that read a text.
    used: the codes in use, or a file of them, for the models whose codec has more (2887 of 8192 on
    captions, 974 of 16384 on classes).
    All are sampled in 100 steps of the whole posterior; sampler="purity" with its weight of 1 is
    the released purity sampling.  For a zero-shot null ask for guidance 3 (5 of ithq).
    """
    if name not in CODECS:
        raise UsageError(f"model {name!r} is unknown; choose one of {', '.join(CODECS)}")
    text = {"tokenizer": tokenizer, "text": CLIP_B32_TEXT, "projection": 512}
    codec = CODECS[name] if used is None else {**CODECS[name], "used": used}
    made = full(PRESETS[name].to_json(), codec, text)
    return replace(made, guidance=GUIDANCE.get(name, made.guidance))


def full(
    network: Mapping[str, Any], codec: Mapping[str, Any], text: Mapping[str, Any]
) -> VQDiffusionConfig:
    """A system as the released ones are.  network: a TokenTransformerConfig as plain data.

    codec: of an ImageVQ.  text: of a ClipText, of no matter to networks that read none.
    """
    condition = network["condition"]
    guidance, truncation = SAMPLED[condition, bool(network.get("learned_null"))]
    return VQDiffusionConfig(
        network=network,
        codec=codec,
        text=text if condition == "text" else {},
        text_kind="clip",
        auxiliary=5e-4 if condition == "text" else 1e-3,
        steps=network.get("steps", 100),
        guidance=GUIDANCE.get(preset_of(network), guidance),
        truncation=truncation,
        sampler="ancestral",
        sample_steps=100,
    )


def assembled(
    settings: Mapping[str, Any], former: Mapping[str, Any], codecs: Mapping[str, Any]
) -> dict[str, Any]:
    """The config of a published network with its codecs.

    A null of a file of its own is given beside the network of `former`, without which it raises
    LayoutError.
    """
    settings = {"learned_null": False, **former.get("network", {}), **settings}
    if "condition" not in settings:
        raise LayoutError("the network that this null is of is missing; give it as the source")
    return asdict(full(settings, codecs.get("image", {}), codecs.get("text", {})))


def image_size(config: Mapping[str, Any] | VQDiffusionConfig) -> int:
    """Side in pixels; 8 a token where the codec is not given yet."""
    config = read(config)
    side, _ = grid_of(NETWORKS[config.kind][1](config.network))
    shrunk = shrinks(config.codec["encoder"]) if "encoder" in config.codec else 8
    return side * config.codec.get("cell", shrunk)


def missing_parts(config: Mapping[str, Any] | VQDiffusionConfig) -> list[str]:
    """The published parts, as `everyway convert --part` takes them, that a config does not give."""
    config = read(config)
    if config.text_kind != "clip":  # not as `full` makes it
        return []
    coded = "encoder" in config.codec
    needed = [] if coded else ["image=vqgan.pth"]
    if config.condition == "text":
        needed += [] if "text" in config.text else [f"text_states={CLIP}"]
        needed += [] if config.text.get("tokenizer") else [f"tokenizer={CLIP}"]
    if coded and config.codec.get("used") is None:
        few = config.network["codes"] < config.codec["quantiser"]["codes"]
        needed += ["used=used-codes.npy"] if few else []
    return needed


# -- training ---------------------------------------------------------------------------------


class Training(Settings):
    """What a training of this system reads.

    preset: "mini-vq" or a name in PRESETS.
    tokens: the folder of the image tokens.  codecs: the folder of the text codec, or "" for
    that of `mini`, whose weights are then shared; of data of your own also "fitted" or "trained",
    which says how all are made (`train.stack`); of published sizes a model that has all of them,
    or a folder of them as `everyway convert` makes it.  init: a model to start from, codecs and
    weights.
    times: a distribution of `process.training_times`.  drop: share of the samples without their
    conditions.
    """

    preset: str = "mini-vq"
    init: str = ""
    tokens: str = "runs/codecs"
    codecs: str = ""
    times: Tokens = Importance()
    drop: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _all_read(self) -> Training:
        if self.init:
            self.unread(("tokens", "codecs"), "a training that starts from init")
        if self.preset not in ("mini-vq", *PRESETS):
            known = ", ".join(("mini-vq", *PRESETS))
            raise ConfigError(f"preset is {self.preset!r}; it should be {known}")
        if self.preset in PRESETS:
            self.unread(("tokens",), f"preset {self.preset!r}")
        return self

    def system(self, data: TrainingData) -> System:
        """Raises StoreError where a codec is missing."""
        if self.preset in PRESETS:
            settings = PRESETS[self.preset].to_json()
            return fresh(sys.modules[__name__], settings, self.codecs, data)
        tokens = codec_folder.settings(Path(self.tokens), "image_vq")
        if self.codecs:
            made = build(mini(tokens, codec_folder.settings(Path(self.codecs), "text"), {}))
            codec_folder.fill(Path(self.codecs), "text", made.codecs["text"])
        else:
            text, weights, shared = _text_of_mini(data)
            made = build(mini(tokens, text, {"text": shared}))
            made.codecs["text"].load_state_dict(weights)
        codec = codec_folder.fill(Path(self.tokens), "image_vq", made.codecs["image"])
        if isinstance(codec, CellVQ):
            _start_from_looks(made.network, codec.codes)
        return made

    def started(self, former: System) -> System:
        return former


@torch.no_grad()
def _start_from_looks(network: UViT, codes: Tensor) -> None:
    """Embedding and head of the tokens start from what their codes look like, each axis alike:
    what the network learns of one code then holds for those that look like it."""
    codes = codes / codes.std(0)
    axes = nn.init.orthogonal_(codes.new_empty(codes.shape[1], network.config.dim))
    looks = codes @ axes * (axes.shape[1] / axes.shape[0]) ** 0.5  # of variance 1
    network.embed["image"].weight[:-1] = looks
    network.head["image"].weight.copy_(0.1 * looks)


def _text_of_mini(data: TrainingData) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Settings and weights of the text codec of `mini`, and how a config names it."""
    opened = data.opened("mini")
    settings = opened.config["config"]["codec_config"]["text"]
    weights = {k: e.read(torch.float32) for k, e in opened.components["text"].items()}
    digest = store.document(Path(__file__).parents[1] / "shipped" / "mini")["sha256"]["text"]
    return settings, weights, f"mini@{digest}"


TRAININGS: dict[str, dict[str, Any]] = {
    "mini-vq": dict(
        data="lattice", cache=60_000, samples=12_800_000, lr=5e-3, weight_decay=0.0, ema=0.997,
        cooldown=0.4, out="runs/mini-vq",
    )
}  # fmt: skip
