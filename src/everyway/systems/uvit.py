"""U-ViT: one transformer that treats time, condition and noisy picture as tokens.

One state, the picture, on the clock `image`: pixels on a linear schedule, or the latents of an
autoencoder.  It is conditioned on a class, a text, or nothing.  A class model is guided by its last
class, its null (ImageNet-64 models have none), a text model by the empty text.

Source: Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", 2022,
arXiv 2209.12152.  Parameter counts are of the released files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from everyway.checkpoints.tensor_files import Entries
from everyway.codecs.plain import Labels, Pixels, Words
from everyway.contracts import Codec, Context
from everyway.controls.paint import joint_paint
from everyway.errors import UsageError
from everyway.nets.tokens import ContextTokens, Label, Patches, TimeToken
from everyway.nets.uvit import UViT, UViTConfig
from everyway.process.config import gaussian
from everyway.process.training_times import OneClock, Uniform
from everyway.settings import ConfigError, Settings
from everyway.system import Condition, Modality, Null, System, labelled
from everyway.systems import MissingParts, TrainingData
from everyway.systems.published_codecs import fill, how
from everyway.tasks import drawing
from everyway.validation import checked

CLIP_L14 = "hf:openai/clip-vit-large-patch14"
"""Where the text encoder and its tokenizer are published."""


@dataclass(frozen=True, kw_only=True)
class UViTSystemConfig:
    """One U-ViT as a whole.

    network: its UViTConfig as plain data; its condition is in its layout.
    codec_config: "image", settings of the autoencoder, if pictures are no pixels; "text", settings
    of a ClipStates, or a vocabulary of whole words.
    null_class: the last label is the null.  classes: their names in the order of their numbers, if
    they have any.  latent_scale: of latents, where it is not what their
    autoencoder has.  schedule: as `process.config.gaussian` reads it: "linear" in pixels and
    *_large latents, the "discrete" one of latent diffusion elsewhere.
    sampler, guidance, steps: of a `System`.
    """

    network: Mapping[str, Any]
    codec_config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    null_class: bool = False
    classes: Sequence[str] = ()
    latent_scale: float = 0.0
    schedule: str | Mapping[str, Any] = "discrete"
    sampler: str = "dpm++fast"
    guidance: float = 1.0
    steps: int = 50

    def __post_init__(self) -> None:
        checked(self)
        gaussian(self.schedule)

    @property
    def patches(self) -> Patches:
        (own,) = (s for s in UViTConfig.from_json(self.network).layout if isinstance(s, Patches))
        return own

    @property
    def condition(self) -> str:
        """What the network is conditioned on: "label", "text" or ""."""
        return condition_of(UViTConfig.from_json(self.network))

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that it draws."""
        return self.patches.size * (_shrinks(self) if _latent(self) else 1)


# -- the system -------------------------------------------------------------------------------


def full(
    network: UViTConfig, codec_config: Mapping[str, Mapping[str, Any]] | None = None
) -> UViTSystemConfig:
    """A system as released ones with such a network are."""
    data = network.to_json()
    return UViTSystemConfig(network=data, codec_config=codec_config or {}, **as_released(data))


def as_released(network: Mapping[str, Any]) -> dict[str, Any]:
    """Schedule, null, scale and sampling of the released model that a network is most like.

    The authors' guidance scale s is s + 1 here: 0.4 at 256 pixels, 0.7 at 512, 1 with texts.
    """
    config = UViTConfig.from_json(network)
    (picture,) = (s for s in config.layout if isinstance(s, Patches))
    condition, pixels = condition_of(config), picture.channels == 3
    linear = config.time_scale == 999.0
    sampler, steps = ("dpm-fast", 50) if linear else ("dpm++fast", 50)
    if pixels and not condition:
        sampler, steps = "em-sde", 1000
    by_class = 1.0 if pixels else 1.7 if picture.size == 64 else 1.4
    return {
        "null_class": condition == "label" and not pixels,
        "latent_scale": 0.23010 if condition == "text" and not pixels else 0.0,
        "schedule": "linear" if linear else "discrete",
        "sampler": sampler,
        "steps": steps,
        "guidance": {"": 1.0, "label": by_class, "text": 2.0}[condition],
    }


def condition_of(network: UViTConfig) -> str:
    """What a network is conditioned on: "label", "text" or ""."""
    names = {Label: "label", ContextTokens: "text"}
    return next((names[type(s)] for s in network.layout if type(s) in names), "")


def read(config: Mapping[str, Any] | UViTSystemConfig) -> UViTSystemConfig:
    if isinstance(config, UViTSystemConfig):
        return config
    return UViTSystemConfig(**{**as_released(config["network"]), **config})


def build(config: Mapping[str, Any] | UViTSystemConfig) -> System:
    """The system with fresh weights.

    config: a UViTSystemConfig, or the plain data of one, in which what is left out is as released.
    Raises ValueError where a codec is missing.
    """
    config = read(config)
    if parts := missing_parts(config):
        raise MissingParts(parts)
    process = gaussian(config.schedule)
    network, picture = UViT(checked(UViTConfig.from_json(config.network))), config.patches
    image = Modality(
        name="image",
        clock="image",
        shape=(picture.channels, picture.size, picture.size),
        process=process,
        codec=_autoencoder(config) if _latent(config) else Pixels(size=picture.size),
    )
    conditions = CONDITIONS[config.condition](network, config)
    nulls = config.condition != "label" or config.null_class
    return System(
        name="uvit",
        network=network,
        modalities={"image": image},
        tasks=drawing(config.condition, nulls),
        config=asdict(config),
        conditions=conditions,
        sampler=config.sampler,
        guidance=config.guidance,
        steps=config.steps,
        paint=joint_paint(picture.side),
    )


def assembled(
    settings: Mapping[str, Any], former: Mapping[str, Any], codecs: Mapping[str, Any]
) -> dict[str, Any]:
    """The config of a published network with its codecs."""
    return {**settings, "codec_config": codecs}


def image_size(config: Mapping[str, Any] | UViTSystemConfig) -> int:
    """Side in pixels; 8 a latent where the codec is not given yet."""
    return read(config).image_size


def missing_parts(config: Mapping[str, Any] | UViTSystemConfig) -> list[str]:
    """The published parts, as `everyway convert --part` takes them, that a config does not give."""
    config = read(config)
    bare = _latent(config) and "image" not in config.codec_config
    parts = ["image=autoencoder_kl.pth"] if bare else []
    text = config.codec_config.get("text", {})
    if config.condition != "text" or "vocabulary" in text:
        return parts
    wanted = {"text": "text_states", "tokenizer": "tokenizer"}
    return parts + [f"{part}={CLIP_L14}" for key, part in wanted.items() if key not in text]


# -- the picture ------------------------------------------------------------------------------


def _latent(config: UViTSystemConfig) -> bool:
    return config.patches.channels != 3


def _shrinks(config: UViTSystemConfig) -> int:
    """Pixels a latent, along a side; 8 where the autoencoder is not given yet."""
    own = config.codec_config.get("image", {})
    levels = len(own.get("autoencoder", {}).get("block_out_channels", range(4)))
    return own.get("fold", 1) * 2 ** (levels - 1)


def _autoencoder(config: UViTSystemConfig) -> nn.Module:
    from everyway.codecs.rescaled import RescaledVAE

    own = config.codec_config["image"]
    wanted, had = config.latent_scale, own.get("scale", 0.0)
    gain = wanted / had if wanted and had else 1.0
    return RescaledVAE(gain=gain, **own).eval().requires_grad_(False)


# -- conditions -------------------------------------------------------------------------------


def label_condition(network: UViT, config: UViTSystemConfig) -> dict[str, Condition]:
    """A class by its number; the last one is the null, if there is one."""
    (label,) = (s for s in network.config.layout if isinstance(s, Label))
    nulls = {"last": labelled(label.classes - 1)} if config.null_class else {}
    count = label.classes - config.null_class
    if config.classes and len(config.classes) != count:
        raise UsageError(f"classes are {len(config.classes)} names, and there are {count}")
    codec = Labels(classes=count, names=config.classes)
    return {"label": Condition(name="label", source="label", codec=codec, nulls=nulls)}


def text_condition(network: UViT, config: UViTSystemConfig) -> dict[str, Condition]:
    """A text, whose null is the empty one."""
    (condition,) = (s for s in network.config.layout if isinstance(s, ContextTokens))
    codec = _reader(condition, config)
    own = codec if isinstance(codec, nn.Module) else None
    empty = Null(make=lambda: Context(tokens=codec.encode([""])), codec=own)
    return {"text": Condition(name="text", source="text", codec=codec, nulls={"empty": empty})}


def _reader(condition: ContextTokens, config: UViTSystemConfig) -> Codec:
    """Raises ValueError for an encoder of another width."""
    own = config.codec_config["text"]
    if "vocabulary" in own:
        words = tuple(own["vocabulary"])
        return checked(Words(vocabulary=words, length=condition.length, dim=condition.dim))
    from everyway.codecs.clip_states import ClipStates

    codec = ClipStates(length=condition.length, **own).eval().requires_grad_(False)
    if codec.dim != condition.dim:
        raise UsageError(
            f"the network reads texts of width {condition.dim}, and the text encoder's have "
            f"{codec.dim}; give the encoder that it was trained with"
        )
    return codec


CONDITIONS = {"label": label_condition, "text": text_condition, "": lambda network, config: {}}

# -- networks ---------------------------------------------------------------------------------


def network(
    *,
    size: int,
    patch: int,
    channels: int,
    dim: int,
    depth: int,
    heads: int,
    classes: int = 0,
    context: tuple[int, int] | None = None,
    **options,
) -> UViTConfig:
    """One clock `image`.  classes: with a label token in front.  context: (tokens, width)."""
    time = TimeToken(clock="image")
    patches = Patches(name="image", channels=channels, size=size, patch=patch)
    layout: tuple = (time, patches)
    if classes:
        layout = (Label(name="label", classes=classes), time, patches)
    elif context:
        layout = (time, ContextTokens(name="text", length=context[0], dim=context[1]), patches)
    return UViTConfig(layout=layout, dim=dim, depth=depth, heads=heads, **options)


_S = dict(dim=512, depth=12, heads=8)
_M = dict(dim=768, depth=16, heads=12)
_L = dict(dim=1024, depth=20, heads=16)
_H = dict(dim=1152, depth=28, heads=16, conv=False)
_PIXELS_64 = dict(size=64, patch=4, channels=3)
_LATENT_32 = dict(size=32, patch=2, channels=4)
_LATENT_64 = dict(size=64, patch=4, channels=4)
CLIP = (77, 768)
"""Tokens and their width, of CLIP L/14."""

PRESETS: dict[str, UViTConfig] = {
    "cifar10_small": network(size=32, patch=2, channels=3, **_S, time_scale=999.0),  # 44,255,328
    "celeba64_small": network(**_PIXELS_64, **_S, time_scale=999.0),  # 44,292,228
    "imagenet64_mid": network(**_PIXELS_64, **_M, classes=1000, time_scale=999.0),  # 130,940,292
    "imagenet64_large": network(**_PIXELS_64, **_L, classes=1000, time_scale=999.0),  # 286,827,652
    "imagenet256_large": network(**_LATENT_32, **_L, classes=1001, time_scale=999.0),  # 286,763,172
    "imagenet256_huge": network(**_LATENT_32, **_H, classes=1001),  # 500,832,016
    "imagenet512_large": network(**_LATENT_64, **_L, classes=1001, time_scale=999.0),  # 286,861,524
    "imagenet512_huge": network(**_LATENT_64, **_H, classes=1001),  # 500,942,656
    "mscoco_small": network(**_LATENT_32, **_S, context=CLIP),  # 44,692,644
    "mscoco_small_deep": network(**_LATENT_32, **_S | {"depth": 16}, context=CLIP),  # 58,345,636
}


def preset_of(config: UViTConfig) -> str:
    """The name of the published model of this config, or ""."""
    return next((name for name, preset in PRESETS.items() if preset == config), "")


# -- training ---------------------------------------------------------------------------------

_NANO: dict[str, Any] = dict(
    size=16, patch=4, channels=3, dim=128, depth=4, heads=4, time_scale=999.0, init="unit"
)
NANO = {
    "nano": network(**_NANO),
    "nano-class": network(**_NANO, classes=2),
    "nano-text": network(**_NANO, context=(10, 16)),
}
"""Sizes for tests and first steps: 16x16 pixels, a few minutes of training."""
NANO_SAMPLING: dict[str, Any] = dict(sampler="dpm-fast", steps=50, guidance=1.5)
RUNS = "runs/"
"""Where recipes keep the codecs that were made for them; nobody on the hub is called so."""
READ = {"image": ("", ("autoencoder", "fold", "scale")), "text": ("states.", ("text", "tokenizer"))}
"""Component -> what is read of it from other models: how tensors' names begin, and settings."""


class Training(Settings):
    """What a training of this system reads.

    preset: a name in PRESETS or NANO.  codecs: a model or file that holds the codecs of latents.
    size: side in pixels of the pictures; skip, time_conditioning, conv, patch: of the network; all
    other than the preset has them.  skip is "concat", "add" or "none", time_conditioning "token" or
    "norm", conv "after", "before" or "none".  schedule: of `process.config.gaussian`.
    init: a model to start from, codecs and weights.  times: a distribution of
    `process.training_times`.
    drop: share of the samples without their condition; where it is 0 a network of classes has no
    null class.
    """

    preset: str = "nano"
    init: str = ""
    codecs: str = ""
    size: int = Field(0, ge=0)
    skip: str = ""
    time_conditioning: str = ""
    schedule: str | dict[str, Any] = ""
    conv: Literal["", "after", "before", "none"] = ""
    patch: int = Field(0, ge=0)
    times: OneClock = Uniform()
    drop: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _all_read(self) -> Training:
        if self.init:
            read = ("size", "skip", "time_conditioning", "conv", "patch", "schedule")
            self.unread(read, "a training that starts from init")
        elif self.preset not in {**NANO, **PRESETS}:
            known = ", ".join({**NANO, **PRESETS})
            raise ConfigError(f"preset {self.preset!r} is unknown; choose one of {known}")
        elif self.preset in NANO:
            self.unread(("codecs",), f"preset {self.preset!r} of uvit")
        if self.schedule:
            gaussian(self.schedule)
        return self

    def network(self) -> UViTConfig:
        """The preset's with these options; classes are the preset's own.  ConfigError if none."""
        made = {**NANO, **PRESETS}[self.preset]
        options: dict[str, Any] = {"skip": self.skip, "time": self.time_conditioning}
        if self.conv:
            options |= {"conv": self.conv != "none", "conv_first": self.conv == "before"}
        shrinks = 1 if any(getattr(s, "channels", 0) == 3 for s in made.layout) else 8
        if self.size % shrinks:
            raise ConfigError(f"size is {self.size}; of latents it is a multiple of {shrinks}")
        picture = {"size": self.size // shrinks, "patch": self.patch}
        try:
            made = replace(made, **{k: v for k, v in options.items() if v != ""})
            return _with(made, Patches, **{k: v for k, v in picture.items() if v})
        except UsageError as error:
            raise ConfigError(str(error)) from None

    def system(self, data: TrainingData) -> System:
        """Its classes are those of the data, with a null class where conditions are dropped.

        Raises ConfigError for codecs that are missing, ValueError for codecs that do not fit.
        """
        made = self.network()
        condition, drops = condition_of(made), self.drop > 0
        if condition == "label":
            made = _with(made, Label, classes=len(data.classes) + drops)
        settings, weights = self._codecs(condition, data)
        own = replace(full(made, settings), null_class=condition == "label" and drops)
        if condition == "label":
            own = replace(own, classes=[*data.classes])
        if self.preset in NANO:
            own = replace(own, **NANO_SAMPLING)
        if condition == "label" and not drops:
            own = replace(own, guidance=1.0)
        if self.schedule:
            own = replace(own, schedule=self.schedule, sampler="dpm++2m")
        if parts := missing_parts(own):
            raise ConfigError(f"codecs={self.codecs!r} lacks {', '.join(parts)}; {how(parts)}")
        system = build(own)
        for name, entries in weights.items():
            fill(system.codecs[name], entries)
        return system

    def started(self, former: System) -> System:
        return former

    def _codecs(
        self, condition: str, data: TrainingData
    ) -> tuple[dict[str, Any], dict[str, Entries]]:
        """(settings, tensors) by component, of the codecs that `codecs` names."""
        if self.preset in NANO:
            return ({"text": {"vocabulary": list(data.words)}} if condition == "text" else {}), {}
        if not self.codecs:
            return {}, {}
        if not Path(self.codecs).exists() and self.codecs.startswith(RUNS):
            parts = missing_parts(full(self.network()))
            raise ConfigError(f"there is no folder {self.codecs!r}; {how(parts, self.codecs)}")
        opened = data.opened(self.codecs)
        had = opened.config["config"].get("codec_config", {})
        settings: dict[str, Any] = {}
        weights: dict[str, Entries] = {}
        for name, (start, fields) in READ.items():
            if fields[0] in had.get(name, {}) and name in ("image", condition):
                settings[name] = {k: v for k, v in had[name].items() if k in fields}
                tensors = opened.components[name].items()
                weights[name] = {k: entry for k, entry in tensors if k.startswith(start)}
        return settings, weights


def _with(network: UViTConfig, kind: type, **changes: Any) -> UViTConfig:
    """The network with its stream of that kind changed."""
    layout = (replace(s, **changes) if isinstance(s, kind) else s for s in network.layout)
    return replace(network, layout=tuple(layout))


TRAININGS: dict[str, dict[str, Any]] = {}
"""Trainings of this system are recipes: recipes/uvit-*.toml."""
