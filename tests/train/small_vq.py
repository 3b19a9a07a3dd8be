"""Trains a VQ-Diffusion of a few thousand weights: small_vq.py OUT STEPS.

Its times are drawn by importance from the moment that every step of its process was seen once.
"""

from __future__ import annotations

import sys

import torch

from everyway.codecs.text_tokens import train_tokens
from everyway.data.shapes import Shapes
from everyway.process import times
from everyway.systems import vq_diffusion
from everyway.train import train

SIDE = {"in_channels": 192, "out_channels": 8, "block_out_channels": [32], "layers_per_block": 0}
CODEC = {
    "encoder": {**SIDE, "down_block_types": ["DownEncoderBlock2D"]},
    "decoder": {
        **SIDE, "in_channels": 8, "out_channels": 192, "up_block_types": ["UpDecoderBlock2D"],
    },
    "quantiser": {"kind": "nearest", "codes": 16, "dim": 4},
}  # fmt: skip
DECODER = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 48}


def system(self, data):
    captions = (c for i in range(100) for c in Shapes(seed=0, languages=("en",)).sample(i).captions)
    text = {
        "tokenizer": train_tokens(captions, 120),
        "length": 24,
        "dim": 8,
        "text": {"hidden_size": 16},
        "decoder": DECODER,
    }
    network = vq_diffusion.uvit(side=4, codes=16, text=(24, 8), dim=32, depth=2, heads=2)
    return vq_diffusion.build(
        vq_diffusion.VQDiffusionConfig(
            kind="uvit", network=network.to_json(), codec=CODEC, text=text, steps=10
        )
    )


def run(out: str, steps: int) -> dict:
    torch.set_num_threads(1)
    times.SEEN = 0
    vq_diffusion.Training.system = system
    settings = dict(data="shapes", cache=64, batch=8, lr=1e-4, precision="fp32", device="cpu")
    return train("mini-vq", out=out, steps=steps, drop=0.3, log_every=1, cooldown=0, **settings)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
