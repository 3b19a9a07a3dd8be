"""UniDiffuser: one transformer for every marginal, conditional and joint distribution.

State streams: an image latent and an image embedding on the clock `image`, a text latent on the
clock `text`; both times are tokens of the network.  One loss over independent times.  Guidance
comes from the model's own marginals (the other clock at t = 1), so there is no null token.

Source: Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale",
2023, arXiv 2303.06555.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from everyway.codecs.plain import Pixels, Thumbnail, Words
from everyway.nets.tokens import Patches, Sequence, TimeToken, Vector
from everyway.nets.uvit import UViT, UViTConfig
from everyway.process.gaussian import GaussianProcess, V
from everyway.process.schedules import CosineVP
from everyway.system import Modality, System
from everyway.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class UniDiffuserConfig:
    """Sizes of one UniDiffuser.

    codecs: "plain" (pixels and words, no weights) or "trained" (autoencoder, CLIP, text latent).
    codec_config: plain data for them (vocabulary, tokenizer, sizes).
    weights: modality -> weight of its mean loss.
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

    def network(self) -> UViTConfig:
        """Order of the tokens: both times, the text, the image embedding, the patches."""
        layout = (
            TimeToken(clock="image"),
            TimeToken(clock="text"),
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
            conv=False,
            init="unit",
            layout=layout,
        )


def nano(vocabulary: tuple[str, ...]) -> UniDiffuserConfig:
    """A model for tests and first steps: 16x16 pixels, whole words, about a minute of training."""
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


def mini(codec_config: Mapping[str, Any]) -> UniDiffuserConfig:
    """The shipped default: 64x64 pictures (16x16x4 latents), 24 text tokens, two languages."""
    return UniDiffuserConfig(
        image_channels=4,
        image_size=16,
        patch=2,
        embed_dim=64,
        text_length=24,
        text_dim=32,
        dim=192,
        depth=8,
        heads=3,
        codecs="trained",
        codec_config=codec_config,
    )


def build(config: Mapping[str, Any] | UniDiffuserConfig) -> System:
    """The system with fresh weights.  config: a UniDiffuserConfig, or the plain data of one."""
    if not isinstance(config, UniDiffuserConfig):
        config = UniDiffuserConfig(**config)
    process = GaussianProcess(schedule=CosineVP(), parameterisation=V)  # t = 1 is exactly "absent"
    shapes = {
        "image": (config.image_channels, config.image_size, config.image_size),
        "image_embed": (1, config.embed_dim),
        "text": (config.text_length, config.text_dim),
    }
    codecs = _plain(config) if config.codecs == "plain" else _trained(config)
    modalities = {
        name: Modality(
            name=name,
            clock="text" if name == "text" else "image",
            shape=shape,
            process=process,
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
        tasks=TASKS,
        config=asdict(config),
    )


def _plain(config: UniDiffuserConfig) -> dict[str, Any]:
    return {
        "image": Pixels(size=config.image_size, gain=1.6),
        "image_embed": Thumbnail(side=round((config.embed_dim / 3) ** 0.5)),
        "text": Words(
            vocabulary=tuple(config.codec_config["vocabulary"]),
            length=config.text_length,
            dim=config.text_dim,
        ),
    }


def _trained(config: UniDiffuserConfig) -> dict[str, Any]:
    from everyway.codecs import bundle

    return bundle.build(config.codec_config)
