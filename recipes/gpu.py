"""Trains a model of all 246 objects within minutes of a large GPU (docs/gpu.md).

    python recipes/gpu.py prepare --world hard                # where the emoji font is; any CPU
    python recipes/gpu.py --world hard --out runs/gpu         # where the GPU is

Without a part it does all of them; codecs that are there are not fitted again, and a training that
was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from everyway.apps.demo import demo
from everyway.checkpoints import codec_folder, store
from everyway.data import emoji
from everyway.errors import EverywayError, UsageError
from everyway.generate import load
from everyway.metrics.report import evaluate
from everyway.systems import unidiffuser
from everyway.train import train
from everyway.train.config import resolve
from everyway.train.fitted import fit_codecs
from everyway.train.folder import TrainingProgress

Tell = Callable[[str], None]
PARTS = ("prepare", "train", "evaluate")
LIMIT = 16 * 2**20
"""Bytes of the largest file that is exported: some machines return no larger ones."""


@dataclass(frozen=True)
class World:
    """data: name of the built-in scenes.  side: of the image latent.  guidance, steps: of a
    system."""

    data: str
    side: int
    guidance: float
    steps: int


WORLDS = {
    "hard": World("emoji", 8, 2.0, 25),  # jitter of place, size and colour, any wording; 64x64
    "lattice246": World("lattice-246", 3, 1.5, 12),  # no jitter, one wording a language; 96x96
}


def main() -> int:
    """The command line."""
    args = _arguments()
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    try:
        for part in PARTS if args.part == "all" else (args.part,):
            tell(f"{part} {args.world}")
            {"prepare": prepare, "train": learn, "evaluate": judge}[part](args, tell)
    except EverywayError as error:
        print(f"gpu.py: {error}")
        return 2
    return 0


def prepare(args: argparse.Namespace, tell: Tell) -> None:
    """The artwork without the font, and the codecs: small files, which travel to the GPU."""
    if not emoji.CUT.exists():
        emoji.cut()
    if not (args.codecs / "text.facts.json").exists():
        metadata = fit_codecs(args.codecs, args.scenes, WORLDS[args.world].data)
        tell(f"codecs {json.dumps(metadata)}")


def learn(args: argparse.Namespace, tell: Tell) -> None:
    """The transformer, exported every minute to OUT/model."""
    start = args.init or fresh(args, tell)
    gpu = args.device.startswith("cuda") or args.device == "auto" and torch.cuda.is_available()
    settings: dict[str, Any] = {
        "data": WORLDS[args.world].data,
        "init": str(start),
        "device": args.device,
        "out": str(args.out),
        "budget_s": 60 * args.minutes,
        "steps": args.steps,
        "batch": args.batch,
        "cache": args.records,
        "compose": True,
        "compile": gpu,
        "precision": "bf16" if gpu else "fp32",
        "weights": "bf16",
        "publish": True,
        "save_every_s": 60,
        "cooldown": 0.4,
        "log_every": args.log_every,
        "seed": args.seed,
    }

    def progress(p: TrainingProgress) -> None:
        losses = ", ".join(f"{name} {value:.4f}" for name, value in p.losses.items())
        tell(f"step {p.step}, {p.samples_a_second:,.0f} samples/s, {losses}")

    metadata = train(resolve("mini", settings), progress, tell)
    tell(json.dumps(metadata))


def fresh(args: argparse.Namespace, tell: Tell) -> Path:
    """A model folder with the codecs and an untrained network."""
    folder, world = args.out / "start", WORLDS[args.world]
    if (folder / "config.json").exists():
        return folder
    prepare(args, tell)
    own = {name: codec_folder.settings(args.codecs, name) for name in unidiffuser.NEEDED}
    config = replace(
        unidiffuser.sized("mini", own),
        image_channels=own["image"]["channels"],
        image_size=world.side,
        text_length=own["text"]["length"],
        dim=args.dim,
        depth=args.depth,
        heads=max(1, args.dim // 64),
        guidance=world.guidance,
        steps=world.steps,
    )
    torch.manual_seed(args.seed)
    system = unidiffuser.build(config)
    size = 2 * sum(p.numel() for p in system.network.parameters())
    if size > LIMIT:
        raise UsageError(f"the network is {size:,} bytes, above {LIMIT:,}; choose a smaller --dim")
    for name, codec in system.codecs.items():
        codec_folder.fill(args.codecs, name, codec)
    document = {"system": system.name, "config": dict(system.config)}
    metadata = {"name": args.world, "codecs": codec_folder.metadata(args.codecs)}
    store.save(folder, document, system.weights(), metadata, None)
    return folder


def judge(args: argparse.Namespace, tell: Tell) -> None:
    """OUT/scores.json and OUT/demo.png, of what was exported last."""
    model = load(args.out / "model", device=args.device)
    report = evaluate(model, n=args.n)
    store.write_text(args.out / "scores.json", json.dumps(report, indent=1))
    tell(", ".join(f"{k} {v:.3f}" for k, v in report.items() if k.endswith("all_correct")))
    demo(model, args.out, tell)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train 246 objects within minutes of a large GPU")
    add = parser.add_argument
    add("part", nargs="?", choices=(*PARTS, "all"), default="all")
    add("--world", choices=WORLDS, default="hard")
    add("--minutes", type=float, default=5.5, help="of the transformer's training")
    add("--out", type=Path, default=Path("runs/gpu"), help="folder of all that is returned")
    add("--codecs", type=Path, help="folder of what `prepare` fits (runs/codecs-WORLD)")
    add("--init", type=Path, help="go on from this model folder, with other scenes of --seed")
    add("--device", default="auto")
    add("--batch", type=int, default=1024)
    add("--dim", type=int, default=256, help="width of the transformer")
    add("--depth", type=int, default=6)
    add("--seed", type=int, default=0)
    add("--records", type=int, default=300_000, help="scenes that are composed")
    add("--scenes", type=int, default=12_000, help="scenes that codecs are fitted to")
    add("--steps", type=int, default=10**6, help="of the training, at most")
    add("--log-every", type=int, default=100, help="steps")
    add("--n", type=int, default=200, help="scenes a row of the evaluation")
    args = parser.parse_args()
    args.codecs = args.codecs or Path("runs") / f"codecs-{args.world}"
    return args


if __name__ == "__main__":
    raise SystemExit(main())
