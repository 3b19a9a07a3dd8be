"""eDiff-I: a picture in the sigma form, on T5 and CLIP of its text and on the style of another one.

One state, the picture, on the clock `image`.  Its network is a cross-attention U-Net that attends
to several contexts at once, each dropped by itself in training: any of them may be given, at any
weight and with a guidance of its own.  Published are the sizes of a base of 64x64 pixels and of two
networks that draw a picture at four times the side of one that they are shown, `low_res`; no code
and no weights.

Source: Balaji et al., "eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert
Denoisers", 2022, arXiv 2211.01324.  What it leaves open is in docs/decisions/0022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from everyway.checkpoints import codec_folder
from everyway.codecs import bundle
from everyway.codecs.plain import AsGiven, Pixels, Thumbnail, Words
from everyway.contracts import Bundle, Codec, Noise
from everyway.controls.paint import cross_paint
from everyway.data.degrade import Degradation, cut, degraded
from everyway.data.lattice import Lattice
from everyway.data.sample import to_tensor
from everyway.data.styles import WithStyle
from everyway.errors import UsageError
from everyway.nets.unet import ContextStream, PictureStream, UNet, UNetConfig
from everyway.process.config import gaussian
from everyway.process.gaussian import GaussianProcess
from everyway.process.schedules import NoiseLevel
from everyway.process.training_times import LogNormal, OneClock
from everyway.settings import ConfigError, Settings
from everyway.system import Condition, Modality, System, zeros
from everyway.systems import TrainingData
from everyway.tasks import GENERATE, Branch, Task
from everyway.validation import checked

NOISE_LEVELS = {"ln/4": 0.25, "ln": 1.0, "250 ln": 250.0}
"""c_noise -> its factor of ln(sigma)."""
PLAIN = {"Pixels": Pixels, "AsGiven": AsGiven, "Words": Words, "Thumbnail": Thumbnail}
"""Codecs without weights; all others are those of `codecs.bundle`."""


@dataclass(frozen=True, kw_only=True)
class EDiffIConfig:
    """One network of eDiff-I with what it is conditioned on.

    network: its UNetConfig as plain data.
    codecs: "image" and every context and picture of the network -> settings of its codec, "kind"
    among them, a name in PLAIN or in `bundle.MODULES`.
    sources: context or picture -> the raw data that it reads, "text" where it is not named here.
    A context that reads "image" is given in a request by its own name, as a style.
    image_size: side in pixels of the pictures that it reads; 0 is the network's.
    sigma_min, sigma_max, sigma_data: of the noise and the data.
    predicts: what the network does, of `process.config.PREDICTIONS`; "edm" is the paper's.
    ts_order: the power of the grid that it is sampled on.  c_noise: a name in NOISE_LEVELS.
    shared, sampler, guidance, steps: of a `System`.
    """

    network: Mapping[str, Any]
    codecs: Mapping[str, Mapping[str, Any]]
    sources: Mapping[str, str] = field(default_factory=dict)
    image_size: int = 0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    predicts: str = "edm"
    ts_order: float = 6.0
    c_noise: str = "ln/4"
    shared: Mapping[str, str] = field(default_factory=dict)
    sampler: str = "kutta3"
    guidance: float = 5.0
    steps: int = 25

    def __post_init__(self) -> None:
        checked(self)
        if self.c_noise not in NOISE_LEVELS:
            known = ", ".join(NOISE_LEVELS)
            raise UsageError(f"c_noise {self.c_noise!r} is unknown; choose one of {known}")

    @property
    def unet(self) -> UNetConfig:
        return UNetConfig.from_json(self.network)

    @property
    def process(self) -> GaussianProcess:
        return gaussian(
            {
                "name": "edm",
                "sigma_min": self.sigma_min,
                "sigma_max": self.sigma_max,
                "rho": self.ts_order,
                "predicts": self.predicts,
                **({"sigma_data": self.sigma_data} if self.predicts == "edm" else {}),
            }
        )

    def source(self, name: str) -> str:
        return self.sources.get(name, "text")


# -- the system -------------------------------------------------------------------------------


def read(config: Mapping[str, Any] | EDiffIConfig) -> EDiffIConfig:
    return config if isinstance(config, EDiffIConfig) else EDiffIConfig(**config)


def build(config: Mapping[str, Any] | EDiffIConfig) -> System:
    """The system with fresh weights.  config: an EDiffIConfig, or the plain data of one."""
    config = read(config)
    unet, process = checked(config.unet), config.process
    level = NoiseLevel(schedule=process.schedule, scale=NOISE_LEVELS[config.c_noise])
    image = Modality(
        name="image",
        clock="image",
        shape=(unet.channels, unet.size, unet.size),
        process=process,
        codec=_codec("image", config.codecs["image"]),
    )
    conditions = {s.name: _condition(s, config) for s in (*unet.contexts, *unet.pictures)}
    return System(
        name="ediffi",
        network=UNet(unet, noise_level=level),
        modalities={"image": image},
        tasks=_tasks(config),
        config=asdict(config),
        conditions=conditions,
        media={c.asked: "image" for c in conditions.values() if c.source != "text"},
        shared=config.shared,
        sampler=config.sampler,
        guidance=config.guidance,
        steps=config.steps,
        paint=cross_paint(unet.size),
    )


def _codec(name: str, settings: Mapping[str, Any]) -> Codec | nn.Module:
    kind = settings.get("kind", "")
    if kind not in PLAIN:
        return bundle.codec(name, settings, kind)
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k != "kind"}
    return checked(PLAIN[kind](**own))


def _condition(stream: ContextStream | PictureStream, config: EDiffIConfig) -> Condition:
    """A context, whose null is zeros as published; a picture that is shown has none."""
    name, source = stream.name, config.source(stream.name)
    context = isinstance(stream, ContextStream)
    return Condition(
        name=name,
        source=source,
        codec=_codec(name, config.codecs[name]),
        nulls={"zeros": zeros(stream.tokens, stream.dim)} if context else {},
        given_as=name if context and source == "image" else "",
    )


def _tasks(config: EDiffIConfig) -> dict[str, Task]:
    """What is drawn from a text, and from none; a style is not given unless a request does."""
    unet = config.unet
    shown = {p.name: 1.0 for p in unet.pictures}
    texts = [s.name for s in unet.contexts if config.source(s.name) == "text"]
    made = {}
    for name, weight in (("text-to-image", 1.0), ("image", 0.0)):
        contexts = {s.name: weight * (s.name in texts) for s in unet.contexts}
        guided = (Branch(keep=("image",), without=tuple(texts)),) if weight else ()
        made[name] = Task(
            name=name,
            roles={"image": GENERATE},
            contexts=contexts | shown,
            guidance=guided if shown else None,
        )
    return made if texts else {"image": made["image"]}


def image_size(config: Mapping[str, Any] | EDiffIConfig) -> int:
    """Side in pixels."""
    config = read(config)
    return config.image_size or config.unet.size


def missing_parts(config: Mapping[str, Any] | EDiffIConfig) -> list[str]:
    """None: nothing of it was published."""
    return []


# -- sizes ------------------------------------------------------------------------------------

SHARES = {"t5": 0.25, "clip_text": 0.2, "style": 0.9}
"""Context -> the published share of the samples that it is dropped in."""


def published_contexts(dims: Mapping[str, tuple[int, int]]) -> tuple[ContextStream, ...]:
    """T5, CLIP's text and CLIP's picture.  dims: name -> (tokens, width)."""
    summaries = {"t5": "", "clip_text": "first", "style": "mean"}
    return tuple(
        ContextStream(name=name, length=length, dim=dim, summary=summaries[name])
        for name, (length, dim) in dims.items()
    )


_CONTEXTS = published_contexts({"t5": (113, 4096), "clip_text": (77, 768), "style": (1, 768)})
_LOW_RES = (PictureStream(name="low_res", channels=3),)
_SHARED: dict[str, Any] = dict(channels=3, contexts=_CONTEXTS, context_dim=4096)
_SR: dict[str, Any] = dict(
    size=256, width=128, blocks=(2, 4, 8, 8), cross_attention=(32,), efficient=True,
    pictures=_LOW_RES, **_SHARED,
)  # fmt: skip
NETWORKS = {
    "ediffi-base": UNetConfig(
        size=64, width=256, multipliers=(1, 2, 4, 4), blocks=(3, 3, 3, 3),
        self_attention=(32, 16, 8), cross_attention=(32, 16, 8), **_SHARED,
    ),  # 806,632,963
    "ediffi-sr256": UNetConfig(
        multipliers=(1, 2, 4, 8), self_attention=(32,), **_SR,
    ),  # 655,276,931
    "ediffi-sr1024": UNetConfig(multipliers=(1, 2, 4, 4), **_SR),  # 287,112,579
}  # fmt: skip
"""As published; inferred are the width of the contexts and the heads' of the last one."""
LOW_RES = {"ediffi-sr256": 64, "ediffi-sr1024": 64}
"""Side in pixels of what they make larger, at the size that they are trained at (of 1024 pixels,
patches of 256)."""


def published(name: str, tokenizers: Mapping[str, str]) -> EDiffIConfig:
    """ "ediffi-base", "ediffi-sr256" or "ediffi-sr1024".

    tokenizers: the JSON of T5's ("t5") and of CLIP's ("clip_text") tokenizer.
    """
    from everyway.codecs.encoders import CLIP_L14_VISION

    network = NETWORKS[name]
    codecs: dict[str, Any] = {
        "image": {"kind": "Pixels", "size": network.size},
        "t5": {"kind": "T5States", "tokenizer": tokenizers["t5"]},
        "clip_text": {"kind": "ClipSentence", "tokenizer": tokenizers["clip_text"]},
        "style": {"kind": "ImageEmbedding", "vision": CLIP_L14_VISION},
    }
    own = EDiffIConfig(
        network=network.to_json(), codecs=codecs, sources={"style": "image"}, image_size=256
    )
    if not network.pictures:
        return own
    codecs = codecs | {"low_res": {"kind": "AsGiven"}}
    sources = {**own.sources, "low_res": "low_res"}
    return replace(own, codecs=codecs, sources=sources, ts_order=3.0, steps=10)


MINI = "mini"
"""The shipped model whose text and picture codecs `mini` and `mini_sr` read by."""
LOOKED_AT = 1500
"""Pictures that the codec of `mini` is fitted to."""


CELLS = {"kind": "CellPCA", "cell": 16, "channels": 96, "side": 48}
"""The codec of the pictures of the shipped `mini-ediffi`."""


def mini(
    text: Mapping[str, Any], style: Mapping[str, Any], image: Mapping[str, Any] = CELLS
) -> EDiffIConfig:
    """The base of `mini-ediffi`: pictures of few latents, one a cell; nine of 48x48 pixels.

    It predicts the picture itself: its captions tell all of it, and what the preconditioning of the
    paper has a network tell of little noise, the noise, hardly passes through its few channels.
    text, style, image: settings of codecs, a `TokenTable`, `ThumbnailPCA` and `CellPCA`.
    """
    side = image["side"] // image["cell"]
    network = UNetConfig(
        size=side,
        channels=image["channels"],
        width=128,
        multipliers=(1,),
        blocks=(1,),
        kernel=1,
        feed_forward=4,
        positions=True,
        time_dim=256,
        self_attention=(side,),
        cross_attention=(side,),
        head_channels=32,
        contexts=(
            ContextStream(name="t5", length=text["length"], dim=text["dim"], positions=True),
            ContextStream(name="style", length=1, dim=style["channels"], summary="mean"),
        ),
        context_dim=128,
    )
    return EDiffIConfig(
        network=network.to_json(),
        codecs={
            "image": image,
            "t5": text,
            "style": style,
        },
        sources={"style": "style"},
        image_size=image["side"],
        predicts="x0-faded",
        c_noise="250 ln",
        sampler="dpm++2m",
        guidance=1.0,
        steps=12,
    )


def mini_sr(text: Mapping[str, Any]) -> EDiffIConfig:
    """The super-resolution network of `mini-ediffi`: pictures of 128x128 pixels.

    It predicts what the picture that it is shown lacks: its first level is narrower than the pixels
    that are folded into a place of it, so it could not tell their noise.
    text: settings of the text codec of `MINI`.
    """
    network = UNetConfig(
        size=128,
        channels=3,
        fold=4,
        width=40,
        time_dim=80,
        multipliers=(1, 2, 2),
        blocks=(1, 1, 1),
        self_attention=(8,),
        cross_attention=(8,),
        head_channels=40,
        efficient=True,
        contexts=(
            ContextStream(name="t5", length=text["length"], dim=text["dim"], positions=True),
        ),
        context_dim=80,
        pictures=(PictureStream(name="low_res", channels=3, residual=True),),
    )
    return EDiffIConfig(
        network=network.to_json(),
        codecs={
            "image": {"kind": "Pixels", "size": 128, "mode": "bicubic"},
            "t5": text,
            "low_res": {"kind": "AsGiven"},
        },
        sources={"low_res": "low_res"},
        sigma_max=5.0,
        predicts="x0-faded",
        c_noise="ln",
        ts_order=3.0,
        sampler="ddim",
        guidance=1.0,
        steps=1,  # the mean of what the picture may be: further steps add detail and errors
    )


def nano(vocabulary: tuple[str, ...]) -> EDiffIConfig:
    """A model for tests and first steps: 16x16 pixels, minutes of training.

    Plain codes of words stand for T5 and CLIP's text, a thumbnail for CLIP's picture.
    """
    words = {"kind": "Words", "vocabulary": list(vocabulary), "length": 10}
    network = UNetConfig(
        size=16,
        channels=3,
        width=32,
        multipliers=(1, 2, 2),
        blocks=(1, 1, 1),
        self_attention=(8, 4),
        cross_attention=(8, 4),
        head_channels=16,
        contexts=(
            ContextStream(name="t5", length=10, dim=24),
            ContextStream(name="clip_text", length=10, dim=16, summary="mean"),
            ContextStream(name="style", length=1, dim=48, summary="mean"),
        ),
        context_dim=32,
    )
    return EDiffIConfig(
        network=network.to_json(),
        codecs={
            "image": {"kind": "Pixels", "size": 16},
            "t5": {**words, "dim": 24},
            "clip_text": {**words, "dim": 16},
            "style": {"kind": "Thumbnail", "side": 4},
        },
        sources={"style": "image"},
        c_noise="ln",
        guidance=2.0,
        steps=10,
    )


def nano_sr(vocabulary: tuple[str, ...]) -> EDiffIConfig:
    """What enlarges the pictures of `nano` to 32x32 pixels, for tests and first steps."""
    base = nano(vocabulary)
    network = UNetConfig(
        size=32,
        channels=3,
        fold=2,
        width=32,
        multipliers=(1, 2),
        blocks=(1, 1),
        cross_attention=(8,),
        head_channels=32,
        efficient=True,
        contexts=(ContextStream(name="t5", length=10, dim=24),),
        context_dim=32,
        pictures=_LOW_RES,
    )
    codecs = {
        "image": {"kind": "Pixels", "size": 32},
        "t5": base.codecs["t5"],
        "low_res": {"kind": "AsGiven"},
    }
    return replace(
        base,
        network=network.to_json(),
        codecs=codecs,
        sources={"low_res": "low_res"},
        ts_order=3.0,
        guidance=1.0,
        steps=4,
    )


# -- training ---------------------------------------------------------------------------------


class Drop(Settings):
    """Shares of the samples that each context is dropped in, independently of the others."""

    t5: float = Field(SHARES["t5"], ge=0, lt=1)
    clip_text: float = Field(SHARES["clip_text"], ge=0, lt=1)
    style: float = Field(SHARES["style"], ge=0, lt=1)


class LowRes(Settings):
    """What a network that enlarges pictures is shown in training: patches that lost something.

    patch: side of a patch in pixels; 0 is the whole picture.
    factor: by which a patch is made smaller, at most.
    level, share: of `data.degrade.Degradation`.
    """

    patch: int = Field(0, ge=0)
    factor: float = Field(4.0, ge=1)
    level: float = Field(1.0, ge=0, le=1)
    share: float = Field(0.5, ge=0, le=1)

    def of(self, pictures: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """(patches of pictures (B, 3, H, W) in [-1, 1], what is left of them)."""
        how = Degradation(factor=(1.0, self.factor), level=self.level, share=self.share)
        patches = cut(pictures, self.patch, noise) if self.patch else pictures
        return patches, degraded(patches, noise, how)


class Training(Settings):
    """What a training of this system reads.

    preset: a name in SMALL or in NETWORKS.  init: a model to start from, codecs and weights.
    codecs: of `mini-ediffi` the folder of its codecs, or "" for one that is fitted to built-in
    pictures and those of `MINI`; of published sizes, a folder with those that
    `codecs.context_encoders.filled` reads of t5, clip_text and style, each in a folder of its name.
    times: a distribution of `process.training_times`; by default ln(sigma) ~ N(-1.2, 1.2^2).
    drop: as `Drop`.  low_res: as `LowRes`, of networks that enlarge.
    """

    preset: Literal[
        "ediffi-nano",
        "ediffi-nano-sr",
        "mini-ediffi",
        "mini-ediffi-sr",
        "ediffi-base",
        "ediffi-sr256",
        "ediffi-sr1024",
    ] = "ediffi-nano"
    init: str = ""
    codecs: str = ""
    times: OneClock = LogNormal()
    drop: Drop = Drop()
    low_res: LowRes = LowRes()

    @model_validator(mode="after")
    def _all_read(self) -> Training:
        if self.init:
            self.unread(("codecs",), "a training that starts from init")
        elif self.preset not in (*NETWORKS, "mini-ediffi"):
            self.unread(("codecs",), f"preset {self.preset!r}")
        elif self.preset in NETWORKS and not self.codecs:
            raise ConfigError(
                f"preset {self.preset!r} reads T5 and CLIP; give codecs=DIR with the folders "
                "DIR/t5, DIR/clip_text and DIR/style as transformers saves them"
            )
        return self

    def system(self, data: TrainingData) -> System:
        """Raises UsageError where a codec is missing."""
        if self.preset == "mini-ediffi" and self.codecs:
            return _of_folder(Path(self.codecs))
        if self.preset.startswith("mini"):
            return _mini(self.preset, data)
        if self.preset not in NETWORKS:
            return build((nano_sr if self.preset.endswith("-sr") else nano)(data.words))
        from everyway.codecs.context_encoders import filled
        from everyway.codecs.published_tokens import tokenizer_json

        folders = {name: Path(self.codecs) / name for name in SHARES}
        tokenizers = {name: tokenizer_json(str(folders[name])) for name in ("t5", "clip_text")}
        made = build(published(self.preset, tokenizers))
        for name, folder in folders.items():
            filled(made.conditions[name].codec, folder)
        return made

    def started(self, former: System) -> System:
        return former

    def prepared(self, system: System, encoded: Bundle, noise: Noise) -> Bundle:
        """Of a network that enlarges, patches of pictures, and what it is shown of them."""
        if "low_res" not in system.conditions:
            return encoded
        patches, low = self.low_res.of(encoded["image"], noise)
        return {**encoded, "image": patches, "context.low_res": low}


def _of_folder(folder: Path) -> System:
    """`mini` on the codecs of a folder.  Raises StoreError where one is missing."""
    parts = {"t5": "text", "style": "image_embed", "image": "image"}
    settings = {name: codec_folder.settings(folder, part) for name, part in parts.items()}
    made = build(mini(settings["t5"], settings["style"], settings["image"]))
    codecs = {name: condition.codec for name, condition in made.conditions.items()}
    for name, codec in {**codecs, **made.codecs}.items():
        if name in parts:
            codec_folder.fill(folder, parts[name], codec)
    return made


def _mini(preset: str, data: TrainingData) -> System:
    """With the codecs of MINI; that of the base's latents is fitted here."""
    opened = data.opened(MINI)
    own = opened.config["config"]["codec_config"]
    text, style = own["text"], own["image_embed"]
    made = build(mini_sr(text) if preset.endswith("-sr") else mini(text, style))
    for name, part in (("t5", "text"), ("style", "image_embed")):
        if name in made.conditions:
            weights = {k: e.read(torch.float32) for k, e in opened.components[part].items()}
            made.conditions[name].codec.load_state_dict(weights)
    if "image" in made.codecs:
        scenes = WithStyle(scenes=Lattice(seed=21))
        made.codecs["image"].fit(to_tensor([scenes.sample(k).image for k in range(LOOKED_AT)]))
    return made


TRAININGS: dict[str, dict[str, Any]] = {
    "ediffi-nano": dict(
        system="experts", base="ediffi-nano-root", plan="edges-2", steps=150,
        out="runs/ediffi-nano",
    ),
    "ediffi-nano-root": dict(
        data="shapes", cache=4000, steps=1500, batch=32, optimiser="adamw", lr=2e-3, ema=0.995,
        out="runs/ediffi-nano-root",
    ),
    "ediffi-nano-sr": dict(
        preset="ediffi-nano-sr", data="shapes", cache=2000, steps=600, batch=32, optimiser="adamw",
        lr=2e-3, ema=0.995, patch=16, factor=2.0, out="runs/ediffi-nano-sr",
    ),
    "mini-ediffi": dict(
        preset="mini-ediffi", data="lattice-with-style", cache=30_000, steps=200_000, lr=5e-3,
        weight_decay=0.0, ema=0.997, t5=0.05, style=0.0, cooldown=0.4, out="runs/mini-ediffi",
        times={"distribution": "lognormal", "mean": 0.0, "std": 1.8},
    ),
    "mini-ediffi-sr": dict(
        preset="mini-ediffi-sr", data="lattice-fine", cache=3000, steps=100_000, batch=32,
        optimiser="adamw", lr=2e-3, weight_decay=0.0, ema=0.997, patch=64, t5=0.1, cooldown=0.4,
        share=0.3, level=0.5,
        times={"distribution": "lognormal", "mean": 1.0, "std": 1.0}, out="runs/mini-ediffi-sr",
    ),
}  # fmt: skip
