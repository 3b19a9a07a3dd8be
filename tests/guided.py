"""The tiny UniDiffusers of the goldens, the modes they are guided in, and their streams."""

from __future__ import annotations

from everyway.layouts import unidiffuser as unidiffuser_layouts
from everyway.nets.uvit import UViT
from everyway.tasks import IMAGE_ALONE, IMAGE_TO_TEXT, JOINT, TEXT_ALONE, TEXT_TO_IMAGE
from formula import fill

MODES = {
    "t2i": TEXT_TO_IMAGE,
    "i2t": IMAGE_TO_TEXT,
    "joint": JOINT,
    "i": IMAGE_ALONE,
    "t": TEXT_ALONE,
}
CLOCKS = {"image": "image", "image_embed": "image", "text": "text"}
SHAPES = {"image": (2, 4, 8, 8), "image_embed": (2, 1, 32), "text": (2, 77, 16)}
NAMES = {"image": "z", "image_embed": "clip_img", "text": "text"}
NOISES = {"image": "z_noise", "image_embed": "clip_noise", "text": "text_noise"}


def unidiffuser_of(config: dict, version: int) -> UViT:
    network = unidiffuser_layouts.published(
        version=version,
        size=config["img_size"],
        text=(config["num_text_tokens"], config["text_dim"]),
        embed_dim=config["clip_img_dim"],
        dim=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config["qkv_bias"],
        time_mlp=config["mlp_time_embed"],
    )
    return fill(UViT(network), unidiffuser_layouts.KEYMAP)
