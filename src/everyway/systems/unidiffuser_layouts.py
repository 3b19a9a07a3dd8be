"""UniDiffuser v0 and v1 as published: network configurations and the released tensor names.

Source: Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale",
2023, arXiv 2303.06555.
"""

from __future__ import annotations

from everyway.checkpoints.keymap import Table
from everyway.nets.tokens import Flag, Patches, Sequence, TimeToken, Vector
from everyway.nets.uvit import UViTConfig
from everyway.systems.uvit import blocks, both


def published(
    *,
    version: int = 1,
    size: int = 64,
    text: tuple[int, int] = (77, 64),
    embed_dim: int = 512,
    dim: int = 1536,
    depth: int = 30,
    heads: int = 24,
    **options,
) -> UViTConfig:
    """v0 (952,504,912 parameters) or v1 (952,509,520), at any size for tests.

    v1 adds a token for the kind of training data: 0 web data, 1 cleaner data (the default).
    """
    flag = (Flag(name="data_type", values=2, default=1),) if version == 1 else ()
    layout = (
        TimeToken(clock="image"),
        TimeToken(clock="text"),
        *flag,
        Sequence(name="text", length=text[0], dim=text[1]),
        Vector(name="image_embed", dim=embed_dim),
        Patches(name="image", channels=4, size=size, patch=2),
    )
    return UViTConfig(
        layout=layout, dim=dim, depth=depth, heads=heads, norm="post", conv=False, **options
    )


KEYMAP: Table = (
    ("positions", "pos_embed"),
    ("flag_positions.data_type", "pos_embed_token"),
    ("embed.data_type.weight", "token_embedding.weight"),
    *both("embed.image", "patch_embed.proj"),
    *both("embed.text", "text_embed"),
    *both("embed.image_embed", "clip_img_embed"),
    *both("embed.time_image.0", "time_img_embed.0"),
    *both("embed.time_image.2", "time_img_embed.2"),
    *both("embed.time_text.0", "time_text_embed.0"),
    *both("embed.time_text.2", "time_text_embed.2"),
    *blocks({"norm_skip": "norm1", "norm_attn": "norm2", "norm_mlp": "norm3"}),
    *both("norm", "norm"),
    *both("head.image", "decoder_pred"),
    *both("head.image_embed", "clip_img_out"),
    *both("head.text", "text_out"),
)
"""(ours, the released) names of every UniDiffuser tensor."""
