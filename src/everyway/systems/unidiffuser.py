"""UniDiffuser: one transformer for every marginal, conditional and joint distribution.

State streams: an image latent and an image embedding on the clock `image`, a text latent on the
clock `text`; both times are tokens of the network.  One loss over independent times.  Guidance
comes from the model's own marginals (the other clock at t = 1), so there is no null token.

Source: Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale",
2023, arXiv 2303.06555.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from everyway.checkpoints import codec_folder
from everyway.codecs.pca import cells_a_side
from everyway.codecs.plain import Pixels, Thumbnail, Words
from everyway.codecs.text_tokens import SPECIAL
from everyway.controls.paint import joint_paint
from everyway.data.captions import language
from everyway.errors import UsageError
from everyway.nets.tokens import Flag, Patches, Sequence, TimeToken, Vector
from everyway.nets.uvit import UViT, UViTConfig
from everyway.process.categorical import categorical
from everyway.process.config import gaussian
from everyway.process.training_times import Tasks, TwoClocks
from everyway.settings import ConfigError, Settings
from everyway.system import Condition, Modality, System, labelled
from everyway.systems import MissingParts, TrainingData
from everyway.systems.published_codecs import fresh
from everyway.tasks import PATHS, TASKS, Task
from everyway.validation import checked

CODECS = ("plain", "trained")
PLAIN = 64
"""Side of the pictures that plain codecs make their pixels and thumbnails of."""
DATA_TYPES = ("web", "clean")
"""The kinds of data that v1 was trained on, by number; "clean" by default."""
NEEDED = {
    "image": {"autoencoder": "image=autoencoder_kl.pth"},
    "image_embed": {"vision": "image_embed=hf:openai/clip-vit-base-patch32"},
    "text": {
        "decoder": "text=caption_decoder.pth",
        "text": "text_states=hf:openai/clip-vit-large-patch14",
        "tokenizer": "tokenizer=hf:openai/clip-vit-large-patch14",
        "reader": "reader=hf:openai-community/gpt2",
    },
}
"""Component -> setting -> the published part that gives it."""


@dataclass(frozen=True, kw_only=True)
class UniDiffuserConfig:
    """Sizes of one UniDiffuser.

    image_size: side of an image state (latents, or pixels of plain codecs).
    codecs: of CODECS: "plain" (pixels and words, no weights) or "trained" (autoencoder, CLIP, text
    latent).
    codec_config: plain data for them (vocabulary, tokenizer, sizes).
    weights: modality -> weight of its mean loss.
    data_type: with a token for the kind of training data, as v1.
    languages: with a token for the language of the text, one of these; none where there are none.
    joint_paths: clock -> its path in joint sampling unless a request has one, of `tasks.PATHS`.
    init: of a `UViTConfig`.
    drawn_size: side of the image states that are drawn, whose positions are then those of
    image_size resized; 0 is image_size.
    schedule: of `process.config.gaussian`; "discrete" is the published one.
    sampler, guidance, steps: of a `System`.
    """

    image_channels: int
    image_size: int
    patch: int
    embed_dim: int
    text_length: int
    text_dim: int
    dim: int
    depth: int
    heads: int
    norm: str = "pre"
    time_mlp: bool = True
    codecs: str = "plain"
    codec_config: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] = field(
        default_factory=lambda: {"image": 1.0, "text": 0.5, "image_embed": 0.1}
    )
    data_type: bool = False
    languages: list[str] = field(default_factory=list)
    joint_paths: dict[str, str] = field(default_factory=dict)
    drawn_size: int = 0
    qkv_bias: bool = False
    init: str = "unit"
    schedule: str | Mapping[str, Any] = "cosine"
    sampler: str = "dpm++2m"
    guidance: float = 2.5
    steps: int = 25

    def __post_init__(self) -> None:
        checked(self)
        gaussian(self.schedule)
        if self.codecs not in CODECS:
            raise UsageError(
                f"codecs {self.codecs!r} is unknown; choose one of {', '.join(CODECS)}"
            )
        if self.drawn_size < 0 or self.drawn_size % self.patch:
            raise UsageError(f"drawn_size {self.drawn_size} is no multiple of patch {self.patch}")

    @property
    def side(self) -> int:
        """Of the image states that are drawn."""
        return self.drawn_size or self.image_size

    def network(self) -> UViTConfig:
        """Order of the tokens: times, data type or language, text, embedding, patches."""
        flag = (Flag(name="data_type", values=2, default=1),) if self.data_type else ()
        if self.languages:
            flag += (Flag(name="language", values=len(self.languages), default=0),)
        layout = (
            TimeToken(clock="image"),
            TimeToken(clock="text"),
            *flag,
            Sequence(name="text", length=self.text_length, dim=self.text_dim),
            Vector(name="image_embed", dim=self.embed_dim),
            Patches(
                name="image",
                channels=self.image_channels,
                size=self.image_size,
                patch=self.patch,
            ),
        )
        return UViTConfig(
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            norm=self.norm,
            time_mlp=self.time_mlp,
            qkv_bias=self.qkv_bias,
            conv=False,
            init=self.init,
            layout=layout,
        )


def nano(vocabulary: tuple[str, ...]) -> UniDiffuserConfig:
    """A model for tests and first steps: 16x16 pixels, whole words, minutes of training."""
    return UniDiffuserConfig(
        image_channels=3,
        image_size=16,
        patch=4,
        embed_dim=12,
        text_length=10,
        text_dim=16,
        dim=128,
        depth=4,
        heads=4,
        codec_config={"vocabulary": list(vocabulary)},
        weights={"image": 1.0, "text": 1.0, "image_embed": 0.1},
    )


SIZES: dict[str, dict[str, int]] = {
    "nano": {"dim": 128, "depth": 4, "heads": 4},
    "mini": {"dim": 192, "depth": 4, "heads": 6},
    "small": {"dim": 384, "depth": 8, "heads": 6},
}
"""Sizes of networks for machines without much, by preset; with the codecs of a folder about 1.4, 3
and 20 million parameters."""
PREDICTED = 0.8
"""The weight of a text's loss if its tokens are predicted (`process.categorical`); else it is 2."""
TOKENS = 8
"""How many tokens a side pictures have at most; finer latents are put together in patches."""


def sized(size: str, codecs: Mapping[str, Mapping[str, Any]]) -> UniDiffuserConfig:
    """A network of SIZES on the states of codecs of a folder, of which these are the settings.

    Of the shipped default: 96x96 pictures of nine cells, 12 text tokens, two languages.
    """
    image, embed, text = (codecs[name] for name in NEEDED)
    if "cell" in image:
        side, channels = cells_a_side(image), image["channels"]
    else:
        own = image["autoencoder"]
        side, channels = own["sample_size"], own["latent_channels"]
    return UniDiffuserConfig(
        image_channels=channels,
        image_size=side,
        patch=max(1, side // TOKENS),
        embed_dim=embed["channels"] if "channels" in embed else embed["vision"]["projection_dim"],
        text_length=text["length"],
        text_dim=text["dim"],
        **SIZES[size],
        codecs="trained",
        codec_config=codecs,
        weights={"image": 1.0, "text": PREDICTED if text.get("pairs") else 2.0, "image_embed": 0.1},
        languages=_spoken(text["tokenizer"]),
        joint_paths={"image": "last", "text": "first"},
        schedule="cosine-x0",
        guidance=1.5,
        steps=24,
    )


def _spoken(tokenizer: str) -> list[str]:
    """The languages that a tokenizer has words of, where that is more than one."""
    words = [word for word in json.loads(tokenizer)["model"]["vocab"] if word not in SPECIAL]
    found = sorted({language(word) for word in words if re.search(r"[^\W\d_]", word)})
    return found if len(found) > 1 else []


PUBLISHED: dict[str, dict[str, Any]] = {
    version: {
        "image_channels": 4,
        "image_size": 64,
        "patch": 2,
        "embed_dim": 512,
        "text_length": 77,
        "text_dim": 64,
        "dim": 1536,
        "depth": 30,
        "heads": 24,
        "data_type": version == "v1",
        "time_mlp": False,
        "qkv_bias": False,
    }
    for version in ("v0", "v1")
}
"""Sizes of the released networks: 952,504,912 and 952,509,520 parameters, for 512x512 pictures."""


def full(sizes: Mapping[str, Any], codec_config: Mapping[str, Any]) -> UniDiffuserConfig:
    """A system as the released ones are.  sizes: PUBLISHED["v1"], or others of the same kind.

    The loss is the mean over the elements of all streams together; guidance 8 is the authors' 7.
    """
    side = sizes["image_size"]
    counts = {
        "image": sizes["image_channels"] * side**2,
        "text": sizes["text_length"] * sizes["text_dim"],
        "image_embed": sizes["embed_dim"],
    }
    whole = sum(counts.values())
    return UniDiffuserConfig(
        **sizes,
        norm="post",
        init="small",
        codecs="trained",
        codec_config=codec_config,
        weights={name: count / whole for name, count in counts.items()},
        schedule="discrete",
        sampler="dpm++fast",
        guidance=8.0,
        steps=50,
    )


def version_of(sizes: Mapping[str, Any]) -> str:
    """ "v0" or "v1" for the sizes of a released network, else ""."""
    return next((version for version, own in PUBLISHED.items() if own == sizes), "")


def read(config: Mapping[str, Any] | UniDiffuserConfig) -> UniDiffuserConfig:
    return config if isinstance(config, UniDiffuserConfig) else UniDiffuserConfig(**config)


def build(config: Mapping[str, Any] | UniDiffuserConfig) -> System:
    """The system with fresh weights.  config: a UniDiffuserConfig, or the plain data of one.

    Raises ValueError where a published model lacks a codec.
    """
    config = read(config)
    process = gaussian(config.schedule)
    shapes = {
        "image": (config.image_channels, config.side, config.side),
        "image_embed": (1, config.embed_dim),
        "text": (config.text_length, config.text_dim),
    }
    codecs = _plain(config) if config.codecs == "plain" else _trained(config)
    modalities = {
        name: Modality(
            name=name,
            clock="text" if name == "text" else "image",
            shape=shape,
            process=categorical(process, codecs[name]),
            codec=codecs[name],
            decodes=name != "image_embed",
            weight=config.weights[name],
        )
        for name, shape in shapes.items()
    }
    return System(
        name="unidiffuser",
        network=UViT(config.network()),
        modalities=modalities,
        tasks=_tasks(config),
        config=asdict(config),
        conditions=_conditions(config),
        sampler=config.sampler,
        guidance=config.guidance,
        steps=config.steps,
        paint=joint_paint(config.side // config.patch),
    )


def assembled(
    settings: Mapping[str, Any], former: Mapping[str, Any], codecs: Mapping[str, Any]
) -> dict[str, Any]:
    """The config of a published network with its codecs."""
    return asdict(full(settings, codecs))


def image_size(config: Mapping[str, Any] | UniDiffuserConfig) -> int:
    """Side in pixels; 8 a latent where the codec is not given yet."""
    config = read(config)
    if config.codecs == "plain":
        return PLAIN
    own = config.codec_config.get("image", {})
    if "cell" in own:
        return config.side * own["cell"]
    levels = len(own.get("autoencoder", {}).get("block_out_channels", range(4)))
    return config.side * own.get("fold", 1) * 2 ** (levels - 1)


def missing_parts(config: Mapping[str, Any] | UniDiffuserConfig) -> list[str]:
    """The published parts, as `everyway convert --part` takes them, that a config does not give."""
    config = read(config)
    codec_config = config.codec_config
    if config.schedule != "discrete":  # not as `full` makes it
        return []
    return [
        part
        for component, settings in NEEDED.items()
        for setting, part in settings.items()
        if setting not in codec_config.get(component, {})
    ]


@dataclass(frozen=True)
class DataTypes:
    """The kind of data of each sample, by name, as (B,) int64."""

    def encode(self, raw) -> Tensor:
        return torch.tensor([DATA_TYPES.index(name) for name in raw])

    def decode(self, state: Tensor) -> list[str]:
        return [DATA_TYPES[i] for i in state.tolist()]


@dataclass(frozen=True)
class Languages:
    """The language of each text, one of `names`, as (B,) int64."""

    names: tuple[str, ...]

    def encode(self, raw) -> Tensor:
        return torch.tensor([self.names.index(language(text)) for text in raw])

    def decode(self, state: Tensor) -> list[str]:
        return [self.names[i] for i in state.tolist()]


def _tasks(config: UniDiffuserConfig) -> dict[str, Task]:
    """The table, joint sampling along its paths: a small network that makes one and then the other
    agrees with itself more often than one that makes both at once (docs/LOG.md)."""
    joint = TASKS["joint"].along({clock: PATHS[p] for clock, p in config.joint_paths.items()})
    return {**TASKS, joint.name: joint}


def _conditions(config: UniDiffuserConfig) -> dict[str, Condition]:
    """What no task gives, `null` chooses: the kind of data; the language, unless a prompt does."""

    out = {}
    if config.data_type:
        nulls = {name: labelled(DATA_TYPES.index(name)) for name in reversed(DATA_TYPES)}
        out["data_type"] = Condition(
            name="data_type", source="data_type", codec=DataTypes(), nulls=nulls
        )
    if config.languages:
        nulls = {name: labelled(number) for number, name in enumerate(config.languages)}
        codec = Languages(tuple(config.languages))
        out["language"] = Condition(
            name="language", source="text", codec=codec, nulls=nulls, null_of=language
        )
    return out


def _plain(config: UniDiffuserConfig) -> dict[str, Any]:
    return {
        "image": Pixels(size=config.side, gain=1.6),
        "image_embed": Thumbnail(side=round((config.embed_dim / 3) ** 0.5)),
        "text": checked(
            Words(
                vocabulary=tuple(config.codec_config["vocabulary"]),
                length=config.text_length,
                dim=config.text_dim,
            )
        ),
    }


def _trained(config: UniDiffuserConfig) -> dict[str, Any]:
    from everyway.codecs import bundle

    if parts := missing_parts(config):
        raise MissingParts(parts)
    return bundle.build(config.codec_config)


# -- training ---------------------------------------------------------------------------------


CODEC_FOLDER = "runs/codecs"


class Training(Settings):
    """What a training of this system reads.

    preset: a name in SIZES or in PUBLISHED.
    codecs: the folder of codecs; `nano` has plain ones unless another folder is named.  Of data of
    your own also "fitted" or "trained", which says how they are made (`train.stack`).  Of published
    sizes a model that has them, or a folder of them as `everyway convert` makes it.
    init: a model to start from, codecs and weights.
    patch, depth: of its network, other than it has them; what does not fit then starts afresh.
    schedule: of `process.config.gaussian`, other than the preset has it.
    times: a distribution of `process.training_times`.  drop: share of the samples without their
    conditions.
    """

    preset: Literal["nano", "mini", "small", "v0", "v1"] = "nano"
    init: str = ""
    codecs: str = CODEC_FOLDER
    patch: int = Field(0, ge=0)
    depth: int = Field(0, ge=0)
    schedule: str | dict[str, Any] = ""
    times: TwoClocks = Tasks()
    drop: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _all_read(self) -> Training:
        if self.init:
            self.unread(("codecs", "schedule"), "a training that starts from init")
        else:
            whose = f"preset {self.preset!r} of unidiffuser without init"
            self.unread(("patch", "depth"), whose)
        if self.schedule:
            gaussian(self.schedule)
        return self

    def system(self, data: TrainingData) -> System:
        """Raises StoreError where a codec is missing."""
        own = {"schedule": self.schedule} if self.schedule else {}
        if self.preset in PUBLISHED:
            return fresh(sys.modules[__name__], PUBLISHED[self.preset], self.codecs, data)
        if self.preset == "nano" and self.codecs == CODEC_FOLDER:
            return build(replace(nano(data.words), **own))
        folder = Path(self.codecs)
        codecs = {name: codec_folder.settings(folder, name) for name in NEEDED}
        made = build(replace(sized(self.preset, codecs), **own))
        for name, codec in made.codecs.items():
            codec_folder.fill(folder, name, codec)
        return made

    def started(self, former: System) -> System:
        """Raises ConfigError for a patch or depth that cannot be."""
        other = {k: v for k in ("patch", "depth") if (v := getattr(self, k))}
        if not other:
            return former
        try:
            made = build({**former.config, **other})
        except UsageError as error:
            raise ConfigError(str(error)) from None
        for name, codec in former.codecs.items():
            made.codecs[name].load_state_dict(codec.state_dict())
        made.network.take(former.network)
        return made


TRAININGS: dict[str, dict[str, Any]] = {
    "nano": dict(preset="nano", data="shapes", samples=96_000, lr=5e-3, shift=2.0, out="runs/nano"),
    "mini": dict(
        preset="mini", data="lattice", cache=60_000, samples=12_800_000, lr=5e-3, weight_decay=0.0,
        ema=0.997, shift=8.0, to_image=0.42, to_text=0.30, joint=0.20, drop=0.0,
        codecs="runs/codecs", out="runs/mini",
    ),
    "small": dict(
        preset="small", data="lattice", cache=60_000, samples=12_800_000, lr=3e-3, weight_decay=0.0,
        ema=0.997, shift=8.0, to_image=0.42, to_text=0.30, joint=0.20, drop=0.0,
        codecs="runs/codecs", out="runs/small",
    ),
}  # fmt: skip
