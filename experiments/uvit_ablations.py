"""U-ViT's design choices, one at a time: skips, how it is conditioned on time, the convolution, the
patch.

Each trains `nano` on coloured shapes from the same start, on the same pictures, noises and times;
one table of the mean loss in every quarter of the training, and of pictures and times never seen.

    python experiments/uvit_ablations.py [--steps 2000] [--only skip] [--out out/uvit_ablations]

Source of the choices: Bao et al., 2022, arXiv 2209.12152.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch

from everyway import objective
from everyway.generate import load
from everyway.sampling.noise import StreamNoise
from everyway.train import sources
from everyway.train.config import TrainConfig, resolve
from everyway.train.loop import train

RECIPE = Path(__file__).parents[1] / "recipes" / "uvit-nano.toml"
CHOICES = {
    "as published": {},
    "skip add": {"skip": "add"},
    "skip none": {"skip": "none"},
    "time in the norms": {"time_conditioning": "norm"},
    "conv before": {"conv": "before"},
    "conv none": {"conv": "none"},
    "patch 2": {"patch": "2"},
    "patch 8": {"patch": "8"},
}
UNSEEN_SEED = 1_000_000
UNSEEN = 1024


def table(steps: int, out: Path, only: str = "") -> list[dict]:
    """A row a choice whose name holds `only`."""
    rows = []
    for name, options in CHOICES.items():
        if only not in name and options:
            continue
        folder = out / name.replace(" ", "-")
        common = {"steps": str(steps), "log_every": str(max(1, steps // 4)), "cooldown": "0"}
        config = resolve(str(RECIPE), common | options, out=str(folder))
        if not (folder / "config.json").exists():
            share_cache(out, folder)
        began = time.monotonic()
        train(config)
        log = [json.loads(r) for r in (folder / "log.jsonl").read_text("utf-8").splitlines()]
        seconds = round(time.monotonic() - began, 1)
        rows.append(
            {
                "choice": name,
                "parameters": parameters(folder),
                "losses": [row["image"] for row in log][:4],
                "unseen": unseen_loss(folder, config),
                "seconds": seconds,
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


def share_cache(out: Path, folder: Path) -> None:
    """The encoded pictures of another choice, which are the same for all."""
    for path in [*out.glob("*/latents-*")][:1]:
        shutil.copytree(path, folder / path.name)


def parameters(folder: Path) -> int:
    network = load(str(folder / "model"), device="cpu").system.network
    return sum(p.numel() for p in network.parameters())


@torch.no_grad()
def unseen_loss(folder: Path, config: TrainConfig) -> float:
    """The averaged weights' loss on pictures of another seed, the same for every choice."""
    system = load(str(folder / "model"), device="cpu").system
    data = sources.open_data(config.source.data, UNSEEN_SEED)
    samples = [data.sample(k) for k in range(UNSEEN)]
    x0 = sources.encode(system, samples)["image"][:, 0].half().float()  # as they are cached
    noise = StreamNoise(torch.Generator().manual_seed(UNSEEN_SEED))
    times = config.model.times.draw(noise, system.processes, UNSEEN)
    return round(float(objective.losses(system, {"image": x0}, times, noise)["image"].mean()), 5)


def line(row: dict) -> str:
    losses = "  ".join(f"{loss:.4f}" for loss in row["losses"])
    return (
        f"{row['choice']:18} {row['parameters']:9,}  {losses}  unseen {row['unseen']:.4f}  "
        f"{row['seconds']:6.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", default="", help="choices whose name holds this")
    parser.add_argument("--out", type=Path, default=Path("out/uvit_ablations"))
    args = parser.parse_args()
    rows = table(args.steps, args.out, args.only)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
