"""One network of four flows against four networks of one, of the same layers, on Emoji Lattice.

Every flow sees the same number of samples either way.  One table: parameters, the scene score of
each flow, and the Fréchet distance of variations of pictures.

    python experiments/multiflow.py [--samples 20000] [--dim 64] [--n 60] [--out out/multiflow]

Source of the claim: Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from everyway import library
from everyway.generate import load
from everyway.metrics.report import evaluate
from everyway.systems.versatile import PLAN, Shares, build
from everyway.train.config import resolve
from everyway.train.loop import train
from everyway.train.sources import Data

ROWS = {
    "text-to-image": "t2i.one",
    "image-to-text": "i2t.one",
    "image-variation": "i2i.one",
    "text-variation": "t2t.one",
}
BATCH = 64


def start(dim: int, out: Path) -> Path:
    """A model of `mini-versatile` with other widths, from which all begin."""
    system = resolve("mini-versatile").model.system(Data("lattice-whole", 0))
    network = {**system.config["network"], "dim": dim}
    system = build({**system.config, "network": network, "shared": {}})
    for name, codec in system.codecs.items():
        codec.load_state_dict(load("mini", device="cpu").system.codecs[name].state_dict())
    library.save(out / "start", system, {"name": "start", "history": []})
    return out / "start"


def taught(flows: tuple[str, ...], samples: int, begin: Path, out: Path) -> Path:
    """The model of a training of these flows alone, each on `samples` samples."""
    folder = out / "-".join(flows)
    names = {name: float(name.replace("_", "-") in flows) for name in Shares.model_fields}
    steps = samples * len(flows) // BATCH
    own = {"init": str(begin), "steps": steps, "batch": BATCH, "cache": 20_000, "log_every": 50}
    for cache in [*out.glob("*/latents-*")][:1]:
        if not (folder / cache.name).exists():
            shutil.copytree(cache, folder / cache.name)
    train(resolve("mini-versatile", {**own, **names}, out=str(folder)))
    return folder / "model"


def scored(path: Path, flows: tuple[str, ...], n: int) -> dict[str, float]:
    """Flow -> all correct; and the distance of variations, and how many are laid out otherwise."""
    rows = [ROWS[flow] for flow in flows]
    report = evaluate(load(str(path), device="cpu"), "scenes", n, rows=rows)
    out = {flow: report[f"{ROWS[flow]}.all_correct"] for flow in flows}
    if "image-variation" in flows:
        out["Fréchet"] = report["i2i.one.frechet"]
        out["moved"] = report["i2i.one.moved"]
    return out


def table(samples: int, dim: int, n: int, out: Path) -> dict:
    begin, every = start(dim, out), PLAN["all"]
    network = load(str(begin), device="cpu").system.network
    report = network.parameters_report()
    one = scored(taught(every, samples, begin, out), every, n)
    print("one network", report.total, one, flush=True)
    four: dict[str, float] = {}
    for flow in every:
        four |= scored(taught((flow,), samples, begin, out), (flow,), n)
    print("four networks", report.separate, four, flush=True)
    return {
        "samples a flow": samples,
        "one": {"parameters": report.total, **one},
        "four": {"parameters": report.separate, **four},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000, help="of each flow")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--n", type=int, default=60, help="scenes a score")
    parser.add_argument("--out", type=Path, default=Path("out/multiflow"))
    args = parser.parse_args()
    made = table(args.samples, args.dim, args.n, args.out)
    (args.out / "table.json").write_text(json.dumps(made, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
