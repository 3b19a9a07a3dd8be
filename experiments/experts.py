"""Experts against one model at equal samples seen, on the data of the shipped default.

The base is the shipped default made smaller, trained for a short time on its world.  Every arm goes
on from it for the same number of steps in all: one network on all noise, or the stages of a plan in
equal parts.  A row an arm and a seed: the loss on samples never seen, what it is more than that of
the one network of the seed, sample by sample at the same noise, the scene score, and the Frechet
distance, each with 95 % of it over the samples; then the means with their intervals over seeds.

    python experiments/experts.py [--base MODEL] [--steps 360] [--seeds 3] [--plans level-1,level-2]
        [--set lr=1e-3 cooldown=0.95]

Source of the claim: Balaji et al., "eDiff-I", 2022, arXiv 2211.01324: four experts of 600,000 steps
are better than one network of 800,000, which has seen as many samples.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyway import library, objective
from everyway.generate import Model, load
from everyway.metrics.report import evaluate
from everyway.process import intervals
from everyway.process.intervals import Interval
from everyway.sampling.noise import StreamNoise
from everyway.system import System
from everyway.systems import unidiffuser
from everyway.train import experts, loop, sources, train
from everyway.train.config import TrainConfig, resolve

UNSEEN_SEED = 1_000_000
UNSEEN = 1024
ROWS = ("t2i.two",)


SMALL = {"dim": 96, "depth": 2, "heads": 3}


def root(out: Path, steps: int, cache: int) -> str:
    """A small network with the codecs of the default, trained; its model folder."""
    mini = load("mini", device="cpu")
    system = unidiffuser.build({**mini.system.config, **SMALL})
    for name, codec in mini.system.codecs.items():
        system.codecs[name].load_state_dict(codec.state_dict())
    library.save(out / "fresh", system, {"image_size": mini.image_size, "history": []})
    given = {"init": str(out / "fresh"), "steps": steps, "cache": cache, "latents": str(out)}
    return train(resolve("mini", given, out=str(out / "root")))["model"]


def made(
    base: str, plan: str, steps: int, seed: int, out: Path, cache: int, settings: dict[str, str]
) -> str:
    """The model folder of an arm, trained or gone on with.  Arms of a seed share their samples."""
    stages = len(intervals.named(plan).stages) if plan != "one" else 1
    given = {"base": base, "steps": steps // stages, "seed": seed, "cache": cache}
    given |= {"warmup": 10, "latents": str(out)} | settings
    given |= {"plan": plan} if plan != "one" else {}
    config = resolve("experts", given, out=str(out / f"{plan}-{seed}"))
    if plan != "one":
        return train(config)["model"]
    root, whole = experts.opened(base, config), Interval(name="one", low=0.0, high=1.0)
    return loop.train(experts.stage(root, config, whole, root.model, 1))["model"]


class Unseen:
    """Samples of another seed, at noises and times that are the same for every arm."""

    def __init__(self, base: str, config: TrainConfig) -> None:
        system = load(base, device="cpu").system
        data = sources.open_data(config.source.data, UNSEEN_SEED)
        samples = [data.sample(k) for k in range(UNSEEN)]
        self.encoded = {k: v[:, 0] for k, v in sources.encode(system, samples).items()}
        clocks = {m.clock: m.process for m in system.modalities.values()}
        self.times = config.model.times.draw(self.noise(), clocks, UNSEEN)

    @staticmethod
    def noise() -> StreamNoise:
        return StreamNoise(torch.Generator().manual_seed(UNSEEN_SEED))

    @torch.no_grad()
    def loss(self, system: System) -> dict[str, Tensor]:
        """modality -> loss of each sample (UNSEEN,), and "all": as they are weighed in training."""
        x0 = {name: self.encoded[name].float() for name in system.modalities}
        contexts = objective.contexts_of(system, self.encoded, self.noise(), 0.0, UNSEEN)
        losses = objective.losses(system, x0, self.times, self.noise(), contexts)
        weighed = [system.modalities[name].weight * value for name, value in losses.items()]
        return losses | {"all": torch.stack(weighed).sum(0)}


def interval(values: Tensor) -> dict[str, float]:
    """The mean of values (N,), and 95 % of it."""
    value, near = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return {"value": value, "low": value - near, "high": value + near}


def row(
    model: Model, losses: dict[str, Tensor], than: dict[str, Tensor], arm: str, seed: int, n: int
) -> dict[str, Any]:
    """What an arm reaches.  than: the losses of what it is compared with."""
    scored = evaluate(model, n=n, rows=ROWS)
    return {
        "arm": arm,
        "seed": seed,
        "loss": {name: interval(value) for name, value in losses.items()},
        "more_than_one": {name: interval(losses[name] - than[name]) for name in losses},
        "all_correct": {r: scored["rows"][r]["all_correct"] for r in ROWS},
        "frechet": {r: scored["frechet"][r] for r in ROWS},
    }


def means(rows: list[dict[str, Any]]) -> list[str]:
    """A line a figure and an arm: the mean over seeds and its 95 % interval (Student)."""
    lines = []
    arms = dict.fromkeys(r["arm"] for r in rows)
    for kind in ("loss", "more_than_one", "all_correct", "frechet"):
        for name in rows[0][kind]:
            for arm in arms:
                values = [r[kind][name]["value"] for r in rows if r["arm"] == arm]
                lines.append(f"{kind:13} {name:12} {arm:10} {spread(values)}")
    return lines


T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Number of seeds -> how many standard errors 95 % of Student's distribution lie within."""


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) not in T_95:
        return f"{mean:.4f} (n={len(values)})"
    half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.4f} +- {half:.4f} (n={len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="a model folder, half trained, in place of the small one")
    parser.add_argument("--root-steps", type=int, default=1000, help="of the small one")
    parser.add_argument("--steps", type=int, default=360, help="of every arm in all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plans", default="level-1,level-2")
    parser.add_argument("-n", type=int, default=60, help="scenes a row of the score")
    parser.add_argument("--cache", type=int, default=6000, help="samples that a seed learns from")
    parser.add_argument("--out", type=Path, default=Path("out/experts"))
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE, of every arm's training")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = dict(one.split("=", 1) for one in args.set)
    base = args.base or root(args.out, args.root_steps, args.cache)
    unseen = Unseen(base, experts.opened(base, resolve("experts", {"base": base})).config)
    rows: list[dict[str, Any]] = []

    def add(folder: str, arm: str, seed: int, than: dict[str, Tensor] | None) -> dict[str, Tensor]:
        model = load(folder, device="cpu")
        losses = unseen.loss(model.system)
        rows.append(row(model, losses, than or losses, arm, seed, args.n))
        print(json.dumps(rows[-1]), flush=True)
        (args.out / "table.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        return losses

    add(base, "base", 0, None)
    for seed in range(args.seeds):
        one = None
        for arm in ("one", *args.plans.split(",")):
            folder = made(base, arm, args.steps, seed, args.out, args.cache, settings)
            losses = add(folder, arm, seed, one)
            one = losses if one is None else one
    print("\n".join(means(rows)))


if __name__ == "__main__":
    main()
