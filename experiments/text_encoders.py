"""A text read by T5 and CLIP against either alone, by one model that was given every subset in
training.

    python experiments/text_encoders.py MODEL [--n 200] [--losses 1024] [--steps 12]

Shapes with English captions that no training saw, read with all the text contexts of the model,
with each alone and with none, at the same noise.  A row an arm: the loss, and the share of what a
prompt states that is right in its picture, each with what it is more than with all contexts and
95 % of that, over samples drawn again.

Source of the claim: Balaji et al., "eDiff-I", 2022, arXiv 2211.01324: both together are better than
either.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from everyway import objective
from everyway.data.sample import Sample, to_tensor
from everyway.data.shapes import Shapes
from everyway.generate import Model, load
from everyway.metrics.judge import JUDGES
from everyway.process.training_times import LogNormal
from everyway.sampling.noise import StreamNoise

SEED = 5_000_000
"""Of scenes that no training saw."""
BATCH = 50
AGAIN = 10_000
"""Times that prompts are drawn again."""


def arms(model: Model) -> dict[str, dict[str, float]]:
    """Name -> weight of each text context."""
    names = [c.name for c in model.system.conditions.values() if c.source == "text"]
    alone = {f"{kept} alone": {n: float(n == kept) for n in names} for kept in names}
    return {
        " + ".join(names): dict.fromkeys(names, 1.0),
        **alone,
        "none": dict.fromkeys(names, 0.0),
    }


@torch.no_grad()
def losses(model: Model, samples: list[Sample], weights: dict[str, float]) -> np.ndarray:
    """Of each sample (N,), at a noise and a time that are the same for every arm."""
    system, found = model.system, []
    noise = StreamNoise(torch.Generator().manual_seed(SEED))
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        raw = {"image": to_tensor([s.image for s in part]), "text": [s.captions[0] for s in part]}
        contexts = system.weighed(system.contexts(raw), system.null_contexts(len(part)), weights)
        times = LogNormal().draw(noise, {"image": system.processes["image"]}, len(part))
        x0 = {"image": system.modalities["image"].codec.encode(raw["image"])}
        found.append(objective.losses(system, x0, times, noise, contexts)["image"])
    return torch.cat(found).double().numpy()


def right(model: Model, samples: list[Sample], weights: dict[str, float], steps: int) -> np.ndarray:
    """Of each sample (N,), the share of what its caption states that is in its picture."""
    judge, made, texts = JUDGES["shapes"], [], [s.captions[0] for s in samples]
    for start in range(0, len(texts), BATCH):
        made += model.generate(
            kind="text-to-image",
            text=texts[start : start + BATCH],
            seed=start,
            context_weights=weights,
            sampler="dpm++2m",
            steps=steps,
        )
    seen = judge.read([result.image for result in made])
    scores = (judge.compare(judge.parse(t), s) for t, s in zip(texts, seen))
    return np.array([np.mean([*one.values()]) for one in scores])


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of the mean of values, over samples of them drawn again."""
    rows = np.random.default_rng(0).integers(len(values), size=(AGAIN, len(values)))
    low, high = np.quantile(values[rows].mean(1), (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--n", type=int, default=200, help="pictures an arm")
    parser.add_argument("--losses", type=int, default=1024, help="samples whose loss is taken")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    model, data = load(args.model), Shapes(seed=SEED, languages=("en",))
    samples = [data.sample(k) for k in range(max(args.n, args.losses))]
    first: list[np.ndarray] = []
    print("| read by | loss | more than all | stated and right | more than all |")
    print("|---|---|---|---|---|")
    for name, weights in arms(model).items():
        found = [losses(model, samples[: args.losses], weights)]
        found.append(right(model, samples[: args.n], weights, args.steps))
        first = first or found
        cells = []
        for values, all_ in zip(found, first):
            cells += [f"{values.mean():.4f}", "{:+.4f} to {:+.4f}".format(*interval(values - all_))]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
