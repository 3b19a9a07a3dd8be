"""Improved VQ-Diffusion's claims on `mini-vq`: guidance helps, a learned null beats an empty text,
purity helps.  One table of scene score and Fréchet distance, with 95 % intervals.

    python experiments/vq_guidance_and_purity.py [MODEL] [--n 1000] [--out out/vq_table.json]

Source of the claims: Tang et al., 2022, arXiv 2205.16007.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

from everyway.generate import load
from everyway.metrics.report import evaluate

GUIDANCE = {
    "none": {"guidance": 1.0},
    "zero-shot": {"guidance": 3.0, "null": "empty"},
    "learned null": {"guidance": 3.0, "null": "learned"},
}
STEPS = {25: 1.0, 10: 1.0, 100: 0.3}
"""steps -> share of n, because a hundred steps cost four times as much."""
ROW = "t2i.one"


def table(model_name: str, n: int) -> list[dict]:
    """A row a setting."""
    model, rows = load(model_name), []
    for steps, sampler, guidance in product(STEPS, ("ancestral", "purity"), GUIDANCE):
        settings = {"steps": steps, "sampler": sampler, **GUIDANCE[guidance]}
        count = max(2, round(n * STEPS[steps]))
        report = evaluate(model, "scenes", count, rows=[ROW], settings=settings)
        cell = report["rows"][ROW]["all_correct"]
        rows.append(
            {
                "steps": steps,
                "sampler": sampler,
                "guidance": guidance,
                "score": cell["value"],
                "interval": [cell["low"], cell["high"]],
                "frechet": report[f"{ROW}.frechet"],
                "n": cell["n"],
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


def line(row: dict) -> str:
    low, high = row["interval"]
    return (
        f"{row['steps']:4} {row['sampler']:10} {row['guidance']:13} "
        f"{row['score']:.3f} ({low:.3f} to {high:.3f})  {row['frechet']:8.2f}  n={row['n']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="mini-vq")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("out/vq_table.json"))
    args = parser.parse_args()
    rows = table(args.model, args.n)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
