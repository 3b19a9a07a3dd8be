"""Improved VQ-Diffusion: pictures as tokens, masked and replaced; told a text, a class or nothing.

One state, the image's tokens, on the clock `image`.  Guidance takes the network's own null
("learned"; for classes the last label, or the table's mean), or an empty text ("empty": zero-shot).

Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Tang et al., "Improved Vector Quantized Diffusion Models", 2022, arXiv 2205.16007.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from everyway.codecs.image_vq import ImageVQ
from everyway.codecs.plain import Labels
from everyway.codecs.text_latent import TextLatent
from everyway.contracts import Context
from everyway.nets.token_transformer import TokenTransformer, TokenTransformerConfig
from everyway.nets.tokens import ContextTokens, Ids, Label, TimeToken
from everyway.nets.uvit import UViT, UViTConfig
from everyway.process.mask_replace import ABSORBING, PAPER, RELEASED, UNIFORM, MaskReplace
from everyway.system import Condition, Modality, System
from everyway.tasks import GENERATE, Task

RATES = {"released": RELEASED, "paper": PAPER, "absorbing": ABSORBING, "uniform": UNIFORM}
NETWORKS: dict[str, tuple[type[nn.Module], Callable[[Mapping[str, Any]], Any]]] = {
    "transformer": (TokenTransformer, TokenTransformerConfig.from_json),
    "uvit": (UViT, UViTConfig.from_json),
}
"""kind -> (class, its config from plain data)."""


@dataclass(frozen=True, kw_only=True)
class VQDiffusionConfig:
    """Sizes of one VQ-Diffusion.

    kind: of the network, a name in NETWORKS.  network: its config as plain data; it also says what
    the network is told: a context "text", a "label", or nothing.
    codec: settings of its ImageVQ.  text: settings of the text codec, whose latent is the context.
    shared: component -> the shipped model that has its weights.
    rates: a name in RATES.  steps, auxiliary: of the process.  sampler, guidance: unless told.
    """

    network: Mapping[str, Any]
    codec: Mapping[str, Any]
    kind: str = "transformer"
    text: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    rates: str = "released"
    steps: int = 100
    auxiliary: float = 5e-4
    guidance: float = 3.0
    sampler: str = "purity"

    def __post_init__(self) -> None:
        for name, known in (("kind", NETWORKS), ("rates", RATES)):
            if getattr(self, name) not in known:
                told = f"{name} {getattr(self, name)!r} is unknown"
                raise ValueError(f"{told}; choose {', '.join(known)}")

    @property
    def told(self) -> str:
        """The context that the network is told: "text", "label" or ""."""
        if self.kind == "transformer":
            return {"text": "text", "class": "label", "none": ""}[self.network["condition"]]
        kinds = {row["kind"] for row in self.network["layout"]}
        return "text" if "ContextTokens" in kinds else "label" if "Label" in kinds else ""


def uvit(
    *, side: int, codes: int, text: tuple[int, int] = (0, 0), labels: int = 0, **sizes: Any
) -> UViTConfig:
    """U-ViT over tokens: time, text (length, width) or label, and picture in one sequence."""
    told: tuple = ()
    if text[0]:
        told = (ContextTokens(name="text", length=text[0], dim=text[1], null=True),)
    elif labels:
        told = (Label(name="label", classes=labels),)
    layout = (TimeToken(clock="image"), *told, Ids(name="image", side=side, codes=codes))
    return UViTConfig(layout=layout, time_mlp=True, conv=False, init="unit", **sizes)


def mini(codec: Mapping[str, Any], text: Mapping[str, Any]) -> VQDiffusionConfig:
    """`mini-vq`: 64x64 pictures as 8x8 tokens, told by mini's text latent; 3M parameters."""
    network = uvit(
        side=8,
        codes=codec["quantiser"]["codes"],
        text=(text["length"], text["dim"]),
        dim=160,
        depth=8,
        heads=5,
    )
    return VQDiffusionConfig(
        kind="uvit", network=network.to_json(), codec=codec, text=text, shared={"text": "mini"}
    )


def build(config: Mapping[str, Any] | VQDiffusionConfig) -> System:
    """The system with fresh weights.  config: a VQDiffusionConfig, or the plain data of one.

    Raises ValueError where network and codec do not fit each other.
    """
    if not isinstance(config, VQDiffusionConfig):
        config = VQDiffusionConfig(**config)
    kind, read = NETWORKS[config.kind]
    network = kind(read(config.network))
    picture = ImageVQ(**config.codec).eval().requires_grad_(False)
    side, codes = grid_of(network)
    if codes != picture.classes:
        raise ValueError(f"the network is of {codes} codes, the codec of {picture.classes}")
    process = MaskReplace(
        classes=codes, steps=config.steps, rates=RATES[config.rates], auxiliary=config.auxiliary
    )
    image = Modality(name="image", clock="image", shape=(side**2,), process=process, codec=picture)
    return System(
        name="vq_diffusion",
        network=network,
        modalities={"image": image},
        tasks=tasks(config.told),
        config=asdict(config),
        conditions=CONDITIONS[config.told](network, config),
        shared=config.shared,
        sampler=config.sampler,
        guidance=config.guidance,
    )


def grid_of(network: nn.Module) -> tuple[int, int]:
    """(tokens in a row, codes) of either network."""
    if isinstance(network, TokenTransformer):
        return network.config.side, network.config.codes
    (ids,) = (s for s in network.config.layout if isinstance(s, Ids))
    return ids.side, ids.codes


def tasks(told: str) -> dict[str, Task]:
    """What a network that is told this can do."""
    alone = Task(name="image", roles={"image": GENERATE}, contexts={told: False} if told else {})
    if not told:
        return {"image": alone}
    name = {"text": "text-to-image", "label": "class-to-image"}[told]
    return {name: Task(name=name, roles={"image": GENERATE}, contexts={told: True}), "image": alone}


def told_text(network: nn.Module, config: VQDiffusionConfig) -> dict[str, Condition]:
    """A text, with the network's learned null, and the zero-shot one of an empty text."""
    codec = TextLatent(**config.text).eval().requires_grad_(False)
    nulls = {
        "learned": network.null_context,
        "empty": lambda batch: Context(tokens=codec.latent(codec.tokens.nothing(batch))),
    }
    return {"text": Condition(name="text", source="text", codec=codec, nulls=nulls)}


def told_label(network: nn.Module, config: VQDiffusionConfig) -> dict[str, Condition]:
    """A class by its number."""
    nulls = {"learned": network.null_context}
    codec = Labels(classes=labels_of(network))
    return {"label": Condition(name="label", source="label", codec=codec, nulls=nulls)}


def labels_of(network: nn.Module) -> int:
    """How many classes there are, a null's not counted."""
    if isinstance(network, TokenTransformer):
        return network.config.labels - network.config.learned_null
    (label,) = (s for s in network.config.layout if isinstance(s, Label))
    return label.classes - 1


CONDITIONS = {"text": told_text, "label": told_label, "": lambda network, config: {}}
