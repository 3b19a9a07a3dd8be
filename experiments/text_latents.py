"""Two text latents of as many numbers, one vector and a sequence, on the captions of Emoji Lattice.

Both are trained from nothing for the same steps on the same captions; one table of how many unseen
captions come back exactly, through noise too, and of how many words come back that were not said
so often.

    python experiments/text_latents.py [--steps 600] [--out out/text_latents]

Source of the comparison: one vector as of Li et al., "Optimus", 2020, arXiv 2004.04092, whose
repeated words Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332, name as a weakness.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import torch

from everyway.checkpoints import codec_folder
from everyway.checkpoints.store import write_text
from everyway.codecs import bundle
from everyway.codecs.text_latent import exact_share
from everyway.codecs.text_tokens import word_tokens
from everyway.data.lattice import Lattice
from everyway.train.codec import in_turn
from everyway.train.config import TrainConfig, resolve
from everyway.train.loop import train
from everyway.train.sources import streams

LATENTS = {"one vector": {"length": 1, "dim": 384}, "sequence": {"length": 12, "dim": 32}}
DIVERGENCE = 0.05
"""At 1, and with no steps without it, both write any caption after 1,500 steps (docs/LOG.md)."""
UNSEEN = 300
WORDS_OF = 3000


def table(steps: int, out: Path) -> list[dict]:
    """A row a latent."""
    rows = []
    for name, sizes in LATENTS.items():
        folder = out / name.replace(" ", "-")
        common = {"data": "lattice-whole", "steps": steps, "budget_s": 0, "anneal": steps}
        common |= {"lr": 2e-3, "divergence": DIVERGENCE}
        write_text(folder / "tokenizer.json", words())
        common |= {"codecs": str(folder), "log_every": max(1, steps // 10)}
        began = time.monotonic()
        config = resolve("text-vae", common | sizes, out=str(folder))
        train(config)
        rows.append({"latent": name, **scores(config), "seconds": time.monotonic() - began})
        print(line(rows[-1]), flush=True)
    return rows


def words() -> str:
    """The tokenizer of both: every word of the captions is a token."""
    data = Lattice(seed=0)
    return word_tokens(caption for k in range(WORDS_OF) for caption in data.described(k)[1])


def scores(config: TrainConfig) -> dict[str, float]:
    """Of unseen captions read back from their latents."""
    folder = config.folder
    codec = bundle.codec("text", codec_folder.settings(folder, "text"), "TextLatent")
    codec_folder.fill(folder, "text", codec)
    numbers = range(UNSEEN)
    unseen = in_turn(streams(config, captioned=True)[1](numbers), numbers)
    plain = codec.tokens.decode(codec.tokens.encode(unseen))
    return {
        "parameters": sum(p.numel() for p in codec.parameters()),
        **{f"exact at {s}": exact_share(codec, unseen, s) for s in (0.0, 0.3)},
        "repeated": repeated(plain, codec.decode(codec.encode(unseen))),
    }


def repeated(said: list[str], written: list[str]) -> float:
    """The share of written words that were said, but not so often."""
    more = total = 0
    for before, after in zip(said, written):
        first, then = Counter(before.split()), Counter(after.split())
        more += sum(max(0, then[word] - count) for word, count in first.items())
        total += then.total()
    return more / max(1, total)


def line(row: dict) -> str:
    return (
        f"{row['latent']:10}  {row['parameters']:9,}  exact {row['exact at 0.0']:.3f}  at 0.3 "
        f"{row['exact at 0.3']:.3f}  repeated {row['repeated']:.4f}  {row['seconds']:6.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("out/text_latents"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = table(args.steps, args.out)
    (args.out / "table.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
