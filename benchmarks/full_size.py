"""UniDiffuser v1 at full size, from files in the authors' layouts to every use of it.

    python benchmarks/full_size.py [--modes text-to-image,joint] [--steps 4] [--dtype bf16]

Weights are random, so pictures and texts mean nothing; time and memory are those of the published
files.  They take 5.4 GB in --folder and are removed at the end, unless --keep.  Every mode is a
command of its own, as a user would give it.  Tokenizers of the published sizes are trained here.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from everyway.checkpoints.tensor_files import Entries, Stored
from everyway.codecs.published_tokens import START, STOP
from everyway.layouts import file_layout
from everyway.layouts.autoencoder import SCALE
from everyway.layouts.caption import HEAD, TABLE
from everyway.layouts.table import LAYOUTS
from everyway.systems.unidiffuser import PUBLISHED

TEXT = "a red fox on blue"
MODES: dict[str, list[str]] = {
    "text-to-image": ["generate", "image", "--text", TEXT],
    "image-to-text": ["generate", "text", "--image", "PICTURE"],
    "joint": ["generate", "both"],
    "image": ["generate", "image"],
    "text": ["generate", "text"],
    "vary-image": ["vary", "image", "PICTURE"],
    "vary-text": ["vary", "text", TEXT],
    "interpolate": ["interpolate", "PICTURE", "PICTURE", "--frames", "2"],
}
PARTS = {
    "image": "autoencoder_kl.pth",
    "image_embed": "clip-image",
    "text": "caption_decoder.pth",
    "text_states": "clip-text",
    "tokenizer": "clip.json",
    "reader": "gpt2.json",
}


def settings() -> dict[str, Mapping[str, Any]]:
    """Layout -> settings of the published part."""
    from everyway.codecs.image_vae import STABLE_DIFFUSION
    from everyway.codecs.text_latent import GPT2_SMALL

    marks = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 50257)
    decoder = {**GPT2_SMALL, "n_positions": 1024, "n_inner": 3072, **marks}
    return {
        "unidiffuser": PUBLISHED["v1"],
        "autoencoder-kl": {"autoencoder": STABLE_DIFFUSION, "fold": 1, "scale": SCALE},
        "caption-decoder": {"decoder": decoder, "dim": 64, "length": 77},
    }


def drawn(name: str, shape: tuple[int, ...]) -> Stored:
    """A tensor that is made when it is read: norms that change nothing, matrices of 0.02."""

    def load(dtype: torch.dtype | None) -> Tensor:
        made = torch.randn(shape).mul_(0.02)
        if len(shape) == 1:
            made.fill_(1.0 if name.endswith("weight") else 0.0)
        return made if dtype is None else made.to(dtype)

    return Stored(shape=shape, dtype=torch.float32, load=load)


def entries(expected: Mapping[str, tuple[int, ...]]) -> Entries:
    made = {name: drawn(name, tuple(shape)) for name, shape in expected.items()}
    return made | ({HEAD: made[TABLE]} if HEAD in made else {})


def write_files(folder: Path) -> None:
    """What the authors released, with CLIP and both tokenizers as the hub has them."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
    from transformers import CLIPVisionModelWithProjection as Vision

    from everyway.codecs.encoders import CLIP_B32_VISION, CLIP_L14_TEXT

    torch.manual_seed(0)
    for name, own in settings().items():
        layout = file_layout.named(LAYOUTS, name)
        held = layout.to_theirs(entries(layout.expected(own)))
        file_layout.write(folder, layout, held, file_layout.beside(layout, own))
    Vision(CLIPVisionConfig(**CLIP_B32_VISION)).save_pretrained(folder / "clip-image")
    CLIPTextModel(CLIPTextConfig(**CLIP_L14_TEXT)).save_pretrained(folder / "clip-text")
    (folder / "clip.json").write_text(tokenizer(49408, [START, STOP]), encoding="utf-8")
    (folder / "gpt2.json").write_text(tokenizer(50257, [STOP]), encoding="utf-8")


def tokenizer(size: int, marks: list[str]) -> str:
    """The JSON of a BPE of exactly `size` tokens, trained on words that nobody uses."""
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=9)) for _ in range(30_000)]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=marks,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([TEXT, *words], trainer)
    if made.get_vocab_size() != size:
        raise ValueError(f"{made.get_vocab_size()} tokens instead of {size}; give more words")
    return made.to_str()


def measured(folder: Path, words: list[str], asked: list[str]) -> dict[str, float]:
    """One command: seconds in all and of a forward, and the peak of its memory."""
    given = [w for part, name in PARTS.items() for w in ("--part", f"{part}={folder / name}")]
    own = [str(folder / "picture.png") if w == "PICTURE" else w for w in words]
    began = time.monotonic()
    command = [sys.executable, "-m", "everyway.apps.cli", *own, "--json", "--model"]
    done = subprocess.run(
        [*command, str(folder / "uvit.pth"), *given, *asked, "--out", str(folder / "out")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    metadata = answer["results"][-1]["facts"]
    return {
        "seconds": time.monotonic() - began,
        "sampling": metadata["seconds"],
        "forwards": metadata["forwards"],
        "peak_gb": (answer["peak_bytes"] or 0) / 1e9,
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    made = Table("mode", "seconds in all", "sampling", "forwards", "s a forward", "peak GB")
    for name, row in rows.items():
        each = row["sampling"] / max(1, row["forwards"])
        cells = (row["seconds"], row["sampling"], row["forwards"], each, row["peak_gb"])
        made.add_row(name, *(f"{c:.0f}" if c > 99 or c == int(c) else f"{c:.2f}" for c in cells))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--folder", type=Path, default=Path("out/full-size"))
    parser.add_argument("--keep", action="store_true", help="files that are there are used again")
    parser.add_argument("--json", type=Path)
    asked = {"--steps": "4", "--dtype": "bf16", "--device": "auto", "--memory": "auto"}
    for flag, value in asked.items():
        parser.add_argument(flag, default=value)
    parser.add_argument("--guidance", help="the model's own, 8, by default; 1 halves the time")
    parser.add_argument("--set", help="as drawn_size=32, for pictures of 256x256")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "gpt2.json").exists():
        write_files(args.folder)
    Image.effect_noise((512, 512), 60).convert("RGB").save(args.folder / "picture.png")
    flags = [w for f in asked for w in (f, getattr(args, f[2:]))]
    flags += ["--guidance", args.guidance] if args.guidance else []
    flags += ["--set", args.set] if args.set else []
    rows: dict[str, dict[str, float]] = {}
    try:
        for mode in args.modes.split(","):
            rows[mode] = measured(args.folder, MODES[mode], flags)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=2))
            print(mode, rows[mode], file=sys.stderr, flush=True)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder)
    Console().print(table(rows))


if __name__ == "__main__":
    main()
