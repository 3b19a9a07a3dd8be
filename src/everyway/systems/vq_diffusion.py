"""Improved VQ-Diffusion: pictures as tokens, masked and replaced, told a text; purity sampling.

One state, the image's tokens, on the clock `image`; the text is a context.  Guidance takes the
learned null of the network ("learned"), or an encoded empty text ("empty": zero-shot).

Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Tang et al., "Improved Vector Quantized Diffusion Models", 2022, arXiv 2205.16007.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from everyway.codecs.image_vq import SMALL, ImageVQ
from everyway.codecs.text_latent import TextLatent
from everyway.contracts import Context
from everyway.nets.token_transformer import TokenTransformer, TokenTransformerConfig
from everyway.nets.tokens import ContextTokens, Ids, TimeToken
from everyway.nets.uvit import UViT, UViTConfig
from everyway.process.mask_replace import ABSORBING, PAPER, RELEASED, UNIFORM, MaskReplace
from everyway.system import Condition, Modality, System
from everyway.tasks import GENERATE, Task

RATES = {"released": RELEASED, "paper": PAPER, "absorbing": ABSORBING, "uniform": UNIFORM}

TASKS = {
    "text-to-image": Task(name="text-to-image", roles={"image": GENERATE}, contexts={"text": True}),
    "image": Task(name="image", roles={"image": GENERATE}, contexts={"text": False}),
}


@dataclass(frozen=True, kw_only=True)
class VQDiffusionConfig:
    """Sizes of one VQ-Diffusion.

    side: tokens in a row and in a column.  network: "transformer" or "uvit".
    codec: settings of its ImageVQ.  text: settings of the text codec, whose latent is the context.
    shared: component -> the shipped model that has its weights.
    rates: a name in RATES.  auxiliary, steps: of the process.  drop: share told the null instead.
    """

    side: int
    dim: int
    depth: int
    heads: int
    text_length: int
    text_dim: int
    network: str = "transformer"
    mlp: str = "linear"
    codec: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    rates: str = "released"
    steps: int = 100
    auxiliary: float = 5e-4
    guidance: float = 3.0
    sampler: str = "purity"

    def __post_init__(self) -> None:
        for name, known in (("network", NETWORKS), ("rates", RATES)):
            if getattr(self, name) not in known:
                told = f"{name} {getattr(self, name)!r} is unknown"
                raise ValueError(f"{told}; choose {', '.join(known)}")


def transformer(config: VQDiffusionConfig, codes: int) -> TokenTransformer:
    """The network of the papers, its time a sinusoid."""
    return TokenTransformer(
        TokenTransformerConfig(
            codes=codes,
            side=config.side,
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            mlp=config.mlp,
            condition="text",
            text_length=config.text_length,
            text_dim=config.text_dim,
            learned_null=True,
            steps=config.steps,
            time="abs",
        )
    )


def uvit(config: VQDiffusionConfig, codes: int) -> UViT:
    """U-ViT over the same tokens: time, text and picture in one sequence."""
    layout = (
        TimeToken(clock="image"),
        ContextTokens(name="text", length=config.text_length, dim=config.text_dim, null=True),
        Ids(name="image", side=config.side, codes=codes),
    )
    return UViT(
        UViTConfig(
            layout=layout,
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            time_mlp=True,
            conv=False,
            init="unit",
        )
    )


NETWORKS: dict[str, Callable[[VQDiffusionConfig, int], nn.Module]] = {
    "transformer": transformer,
    "uvit": uvit,
}


def mini(codec: Mapping[str, Any], text: Mapping[str, Any]) -> VQDiffusionConfig:
    """`mini-vq`: 64x64 pictures as 8x8 tokens of 1024 codes, told by mini's text latent."""
    return VQDiffusionConfig(
        side=8,
        dim=160,
        depth=8,
        heads=5,
        text_length=24,
        text_dim=32,
        network="uvit",
        codec=codec or SMALL,
        text=text,
        shared={"text": "mini"},
    )


def build(config: Mapping[str, Any] | VQDiffusionConfig) -> System:
    """The system with fresh weights.  config: a VQDiffusionConfig, or the plain data of one."""
    if not isinstance(config, VQDiffusionConfig):
        config = VQDiffusionConfig(**config)
    picture = ImageVQ(**config.codec).eval().requires_grad_(False)
    words = TextLatent(**config.text).eval().requires_grad_(False)
    network = NETWORKS[config.network](config, picture.classes)
    process = MaskReplace(
        classes=picture.classes,
        steps=config.steps,
        rates=RATES[config.rates],
        auxiliary=config.auxiliary,
    )
    tokens = Modality(
        name="image", clock="image", shape=(config.side**2,), process=process, codec=picture
    )
    return System(
        name="vq_diffusion",
        network=network,
        modalities={"image": tokens},
        tasks=TASKS,
        config=asdict(config),
        conditions={"text": told(network, words)},
        shared=config.shared,
        sampler=config.sampler,
        guidance=config.guidance,
    )


def told(network: nn.Module, codec: TextLatent) -> Condition:
    """The text, with the network's learned null, and the zero-shot one of an empty text."""
    return Condition(
        name="text",
        source="text",
        codec=codec,
        nulls={
            "learned": network.null_context,
            "empty": lambda batch: Context(tokens=codec.latent(codec.tokens.nothing(batch))),
        },
    )
