"""Versatile Diffusion: pictures and texts out of either, one flow a pair, on one network.

Pictures and texts are states (an image latent, a text latent) and contexts (CLIP's tokens) alike.
A flow makes one of the former out of one of the latter, or of several that are mixed; each state
follows a clock of its own, and no flow is shown two.

Source: Xu et al., "Versatile Diffusion: Text, Images and Variations All in One Diffusion Model",
2022, arXiv 2211.08332.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file
from torch import nn

from everyway.checkpoints import codec_folder, store
from everyway.codecs import bundle
from everyway.codecs.cells import PlacedCells, PlacedWords
from everyway.codecs.pca import cells_a_side
from everyway.codecs.plain import PatchTokens, Pixels, Words
from everyway.contracts import Codec, Context
from everyway.errors import UsageError
from everyway.nets.multiflow import Maps, MultiFlow, MultiFlowConfig, Sequences, Vectors
from everyway.process.categorical import categorical
from everyway.process.config import gaussian
from everyway.process.training_times import LogNormal, OneClock
from everyway.settings import Settings
from everyway.system import Condition, Modality, Null, System
from everyway.systems import MissingParts, TrainingData
from everyway.systems.published_codecs import fresh
from everyway.tasks import GENERATE, Task
from everyway.validation import checked

FOUR_FLOW = MultiFlowConfig(
    data=(Maps(name="image", channels=4), Vectors(name="text", shape=(1, 768))),
    contexts={"image": 768, "text": 768},
)
"""The released network: 2,566,318,852 parameters, for 512x512 pictures."""
CLIP_L14 = "hf:openai/clip-vit-large-patch14"
NEEDED = {
    "image": {"autoencoder": "image=kl-f8.pth"},
    "text": {
        "encoder": "text=optimus-vae.pth",
        "word_pieces": "word_pieces=hf:google-bert/bert-base-cased",
        "reader": "reader=hf:openai-community/gpt2",
    },
    "image_condition": {"vision": f"image_condition={CLIP_L14}"},
    "text_condition": {
        "text": f"text_condition={CLIP_L14}",
        "tokenizer": f"tokenizer={CLIP_L14}",
    },
}
"""Component -> setting -> the published part that gives it."""
KINDS = {
    "image": "ImageVAE",
    "text": "Optimus",
    "image_condition": "ImageContext",
    "text_condition": "TextContext",
}
"""Component -> the kind of its codec (`codecs.bundle`) where its settings name none."""
AROUND = {kind.__name__: kind for kind in (PlacedCells, PlacedWords)}
"""Codecs of conditions that have no weights but those of a state's codec."""
EMPTY = {"black": -1.0, "grey": 0.0}
"""A picture that shows nothing -> its pixels in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class VersatileConfig:
    """network: the plain data of a MultiFlowConfig, of the states `image` and `text` (or one of
    them) and of contexts of these names.

    image_size: side of an image state.  image_tokens: of a picture in context.
    codec_config: component -> settings of its codec, "kind" among them where it is not published
    (KINDS); or {"vocabulary": [...]} for pixels and words, which have no weights.  "around" names
    the state whose codec a condition reads with (AROUND).
    shared: component -> the shipped model that has its weights, and after an "@" their sha256.
    empty_pictures: whether the pictures that show nothing are nulls; else zeros alone are.
    schedule: of `process.config.gaussian`.  sampler, guidance, steps: of a `System`.
    """

    network: Mapping[str, Any]
    image_size: int = 64
    image_tokens: int = 257
    codec_config: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    empty_pictures: bool = True
    schedule: str | Mapping[str, Any] = "discrete"
    sampler: str = "ddim-stride"
    guidance: float = 7.5
    steps: int = 50

    def __post_init__(self) -> None:
        checked(self)
        gaussian(self.schedule)
        made = {data.name for data in self.flows.data} | {*self.flows.contexts}
        if odd := sorted(made - {"image", "text"}):
            raise UsageError(f"versatile makes images and texts, not {', '.join(odd)}")

    @property
    def flows(self) -> MultiFlowConfig:
        return checked(MultiFlowConfig.from_json(self.network))

    @property
    def plain(self) -> bool:
        """Whether its codecs are pixels and words."""
        return "vocabulary" in self.codec_config


def nano(vocabulary: tuple[str, ...]) -> VersatileConfig:
    """A model for tests and first steps: 16x16 pixels, ten whole words."""
    network = MultiFlowConfig(
        data=(Maps(name="image", channels=3), Vectors(name="text", shape=(10, 16))),
        contexts={"image": 48, "text": 16},
        dim=32,
        multipliers=(1, 2),
        depth=1,
        attending=2,
        heads=4,
    )
    return VersatileConfig(
        network=network.to_json(),
        image_size=16,
        image_tokens=16,
        codec_config={"vocabulary": list(vocabulary)},
        schedule="cosine",
        sampler="dpm++2m",
        guidance=1.5,
        steps=20,
    )


SIZES = {
    "nano-versatile": {"dim": 64, "multipliers": (1,), "depth": 1, "attending": 1, "heads": 4},
    "mini-versatile": {"dim": 120, "multipliers": (1,), "depth": 1, "attending": 1, "heads": 8},
}
"""Sizes of networks on states of few tokens, by preset."""


def sized(size: str, codec_config: Mapping[str, Any], shared: Mapping[str, str]) -> VersatileConfig:
    """A network of SIZES: pictures of cells and texts of tokens, as states and as contexts, each
    token with its place.  The shipped model has nine cells of 96x96 pixels, and twelve tokens.

    codec_config: settings of the codecs of the states, and of a condition with a codec of its own.
    shared: as of `VersatileConfig`.
    """
    image, text = codec_config["image"], codec_config["text"]
    side = cells_a_side(image)
    around = {
        "image_condition": {"kind": "PlacedCells", "around": "image", "gain": 7.0},
        "text_condition": {"kind": "PlacedWords", "around": "text", "gain": 4.0},
    }
    own = codec_config.get("image_condition")
    seen = bundle.codec("image_condition", own, "") if own else None
    whole = (side**2, image["channels"] + side**2)
    tokens, width = (seen.count, seen.width) if seen else whole
    network = MultiFlowConfig(
        data=(
            Maps(name="image", channels=image["channels"], kernel=1, size=side),
            Sequences(name="text", length=text["length"], dim=text["dim"]),
        ),
        contexts={"image": width, "text": text["dim"] + text["length"]},
        **SIZES[size],
    )
    return VersatileConfig(
        network=network.to_json(),
        image_size=side,
        image_tokens=tokens,
        codec_config={**around, **codec_config},
        shared=shared,
        empty_pictures=seen is not None,
        schedule="cosine-x0",
        sampler="dpm++2m",
        guidance=1.5,
        steps=24,
    )


def read(config: Mapping[str, Any] | VersatileConfig) -> VersatileConfig:
    return config if isinstance(config, VersatileConfig) else VersatileConfig(**config)


def build(config: Mapping[str, Any] | VersatileConfig) -> System:
    """The system with fresh weights.  config: a VersatileConfig, or the plain data of one.

    Raises MissingParts where a published model lacks a codec.
    """
    config = read(config)
    if parts := missing_parts(config):
        raise MissingParts(parts)
    flows, process = config.flows, gaussian(config.schedule)
    codecs = _plain(config) if config.plain else _coded(config)
    modalities = {
        data.name: Modality(
            name=data.name,
            clock=data.name,
            shape=_shape(data, config.image_size),
            process=categorical(process, codecs[data.name]),
            codec=codecs[data.name],
        )
        for data in flows.data
    }
    nulls = {"image": image_nulls, "text": text_nulls}
    conditions = {
        name: Condition(
            name=name,
            source=name,
            codec=(codec := codecs[f"{name}_condition"]),
            nulls=nulls[name](codec, config),
            leading=config.image_tokens - isqrt(config.image_tokens) ** 2
            if name == "image"
            else None,
        )
        for name in flows.contexts
    }
    return System(
        name="versatile",
        network=MultiFlow(flows),
        modalities=modalities,
        tasks=tasks(flows),
        config=asdict(config),
        conditions=conditions,
        mixes=True,
        shared=config.shared,
        sampler=config.sampler,
        guidance=config.guidance,
        steps=config.steps,
    )


def assembled(
    settings: Mapping[str, Any], former: Mapping[str, Any], codecs: Mapping[str, Any]
) -> dict[str, Any]:
    """The config of a published network with its codecs.

    settings: of all layers, or of those of one kind, which then come to those of `former`.
    Raises UsageError for layers of networks of different sizes.
    """
    network = dict(settings["network"])
    if had := former.get("network"):
        own = {row["name"] for row in network["data"]}
        network["data"] = [r for r in had["data"] if r["name"] not in own] + network["data"]
        network["contexts"] = {**had["contexts"], **network["contexts"]}
        network["data"].sort(key=lambda row: row["name"])
        if differing := [k for k, v in network.items() if k not in ("data", "contexts")
                         and had[k] != v]:  # fmt: skip
            raise UsageError(f"the layers are of networks of different {', '.join(differing)}")
    return asdict(VersatileConfig(**{**settings, "network": network}, codec_config=codecs))


def image_size(config: Mapping[str, Any] | VersatileConfig) -> int:
    """Side in pixels; 8 a latent where the codec is not given yet."""
    config = read(config)
    own = config.codec_config.get("image", {})
    if config.plain or "cell" in own:
        return config.image_size * own.get("cell", 1)
    levels = len(own.get("autoencoder", {}).get("block_out_channels", range(4)))
    return config.image_size * own.get("fold", 1) * 2 ** (levels - 1)


def missing_parts(config: Mapping[str, Any] | VersatileConfig) -> list[str]:
    """The published parts, as `everyway convert --part` takes them, that a config does not give."""
    config = read(config)
    if config.plain:
        return []
    own = config.codec_config
    used = [d.name for d in config.flows.data] + [f"{c}_condition" for c in config.flows.contexts]
    return [
        part
        for component in used
        for setting, part in NEEDED[component].items()
        if "kind" not in own.get(component, {}) and setting not in own.get(component, {})
    ]


def tasks(flows: MultiFlowConfig) -> dict[str, Task]:
    """One a flow.  A picture that is described has a black one as its null, as released; where one
    is drawn, its null is no picture at all."""
    made = {}
    for data, given in product(flows.data, flows.contexts):
        name = f"{data.name}-variation" if given == data.name else f"{given}-to-{data.name}"
        null = "black" if name == "image-to-text" else ""
        roles, contexts = {data.name: GENERATE}, {given: 1.0}
        made[name] = Task(name=name, roles=roles, contexts=contexts, null=null)
    return made


def fidelity_start(fidelity: float, steps: int = 50, whole: int = 1000) -> float:
    """The time at which a run begins that keeps `fidelity` in [0, 1] of a picture, as released.

    Its state has the noise of that time, and `ddim-stride` begins one step below it.  1 where
    nothing is kept; 0 where all is, and there is nothing to sample.
    """
    if not 0 <= fidelity <= 1:
        raise UsageError(f"fidelity is {fidelity:g}; give a number from 0 to 1")
    number = int(steps * (1 - fidelity))
    if number in (0, steps):
        return float(number > 0)
    return (number * (whole // steps) + 2) / whole


# -- codecs and what stands for none ----------------------------------------------------------


def image_nulls(codec: Codec, config: VersatileConfig) -> dict[str, Null]:
    """Zeros, and the embeddings of empty pictures."""
    shape = (1, config.image_tokens, config.flows.contexts["image"])
    own, side = codec if isinstance(codec, nn.Module) else None, image_size(config)

    def empty(value: float) -> Context:
        return Context(tokens=codec.encode(torch.full((1, 3, side, side), value)))

    made = {"zeros": Null(make=lambda: Context(tokens=torch.zeros(shape)))}
    if not config.empty_pictures:
        return made
    pictures = {n: Null(make=partial(empty, value), codec=own) for n, value in EMPTY.items()}
    return made | pictures


def text_nulls(codec: Codec, config: VersatileConfig) -> dict[str, Null]:
    """The empty text."""
    own = codec if isinstance(codec, nn.Module) else None
    return {"empty": Null(make=lambda: Context(tokens=codec.encode([""])), codec=own)}


def _shape(data: Maps | Vectors | Sequences, side: int) -> tuple[int, ...]:
    return (data.channels, side, side) if isinstance(data, Maps) else data.shape


def _coded(config: VersatileConfig) -> dict[str, Any]:
    names, made = [d.name for d in config.flows.data], dict[str, Any]()
    for name in names + [f"{name}_condition" for name in config.flows.contexts]:
        own = dict(config.codec_config[name])
        if state := own.pop("around", ""):
            made[name] = AROUND[own.pop("kind")](codec=made[state], **own)
        else:
            made[name] = bundle.codec(name, own, KINDS[name])
    return made


def _plain(config: VersatileConfig) -> dict[str, Any]:
    (text,) = (d for d in config.flows.data if d.name == "text")
    words = Words(
        vocabulary=tuple(config.codec_config["vocabulary"]), length=text.shape[0], dim=text.shape[1]
    )
    side = round(config.image_tokens**0.5)
    return {
        "image": Pixels(size=config.image_size, gain=1.6),
        "text": checked(words),
        "image_condition": PatchTokens(size=config.image_size, patch=config.image_size // side),
        "text_condition": checked(words),
    }


# -- training ---------------------------------------------------------------------------------

PLAN = {
    "variation": ("image-variation",),
    "pictures": ("image-variation", "text-to-image"),
    "all": ("image-variation", "text-to-image", "image-to-text", "text-variation"),
}
"""Stage of the published plan -> its flows; each starts from the model of the one before."""
RATES = {
    "variation": {"time": 0.1, "image_data": 0.1},
    "pictures": {"time": 0.1, "image_data": 0.1},
    "all": {"time": 0.1, "image_data": 0.2},
}
"""Stage -> the published parts of the rate of layers that had learned to draw before; 1 of others.

The paper scales gradients.  An optimiser of the kind of Adam takes the same step whatever the scale
of a gradient is, so it is the rate that is scaled here.
"""


class Shares(Settings):
    """Of the samples, each flow's beside the others' of its stage."""

    text_to_image: float = Field(1.0, ge=0)
    image_to_text: float = Field(1.0, ge=0)
    image_variation: float = Field(1.0, ge=0)
    text_variation: float = Field(1.0, ge=0)


class Training(Settings):
    """What a training of this system reads.

    stage: of the published plan, a name in PLAN.  scaled: whether layers learn at the published
    parts of the rate (RATES), as one that starts from a network which draws already.
    codecs: the folder of the codecs, or "" for those of `mini`, whose weights are then shared, and
    of `nano-versatile` for plain ones; of the published size a model that has them, or a folder of
    them as `everyway convert` makes it.
    init: a model to start from, codecs and weights.
    times: a distribution of `process.training_times`.  drop: share of the samples without their
    conditions.
    """

    preset: Literal["nano-versatile", "mini-versatile", "four-flow"] = "nano-versatile"
    stage: Literal["variation", "pictures", "all"] = "all"
    shares: Shares = Shares()
    scaled: bool = False
    init: str = ""
    codecs: str = ""
    times: OneClock = LogNormal()
    drop: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _all_read(self) -> Training:
        if self.init:
            self.unread(("codecs",), "a training that starts from init")
        return self

    @property
    def flows(self) -> dict[str, float]:
        """Flow -> its share of the samples."""
        return {name: getattr(self.shares, name.replace("-", "_")) for name in PLAN[self.stage]}

    @property
    def rates(self) -> dict[str, float]:
        """Component of the network -> its part of the training's rate, where that is not 1."""
        return RATES[self.stage] if self.scaled else {}

    def system(self, data: TrainingData) -> System:
        """Raises StoreError where a codec is missing."""
        if self.preset == "four-flow":
            settings = {"network": FOUR_FLOW.to_json()}
            return fresh(sys.modules[__name__], settings, self.codecs, data)
        if self.preset == "nano-versatile" and not self.codecs:
            return build(nano(data.words))
        if self.codecs:
            folder = Path(self.codecs)
            seen = ["image_condition"] if (folder / "image_condition.json").is_file() else []
            names = ["image", "text", *seen]
            config = {name: codec_folder.settings(folder, name) for name in names}
            weights = {name: load_file(folder / f"{name}.safetensors") for name in config}
            shared = {}
        else:
            config, weights, shared = _of_mini(data)
        if config["text"].get("lexicon"):
            config["text"]["spoken"] = "en"
        made = build(sized(self.preset, config, shared))
        for name, codec in made.codecs.items():
            codec.load_state_dict(weights[name])
        return made

    def started(self, former: System) -> System:
        return former


def _of_mini(data: TrainingData) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Settings and weights of the codecs of `mini`, and how a config names them."""
    opened, names = data.opened("mini"), ("image", "text")
    config = {name: dict(opened.config["config"]["codec_config"][name]) for name in names}
    weights = {
        name: {k: entry.read(torch.float32) for k, entry in opened.components[name].items()}
        for name in names
    }
    digests = store.document(Path(__file__).parents[1] / "shipped" / "mini")["sha256"]
    return config, weights, {name: f"mini@{digests[name]}" for name in names}


TRAININGS: dict[str, dict[str, Any]] = {
    "nano-versatile": dict(
        preset="nano-versatile", data="shapes", samples=96_000, lr=5e-3, out="runs/nano-versatile",
        times={"distribution": "lognormal", "mean": 0.5, "std": 1.5},
    ),
    "mini-versatile": dict(
        preset="mini-versatile", data="lattice-whole", cache=40_000, samples=25_600_000, batch=128,
        lr=5e-3, weight_decay=0.0, ema=0.997, out="runs/mini-versatile", weights="fp16",
        times={"distribution": "lognormal", "mean": 1.7, "std": 1.6},
        text_to_image=1.3, image_to_text=1.2, text_variation=0.5,
    ),
}  # fmt: skip
