"""Improved VQ-Diffusion's claims on `mini-vq`: guidance helps, a learned null beats an empty text,
purity helps.  One table of scene scores with 95 % intervals.

    python experiments/vq_guidance_and_purity.py [MODEL] [--n 300] [--out FILE]
    python experiments/vq_guidance_and_purity.py --share 0/2 &  # the same by two processes
    python experiments/vq_guidance_and_purity.py --share 1/2 &

Rows that the file holds already are not made again, so it may be stopped at any time.
Source of the claims: Tang et al., 2022, arXiv 2205.16007.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

from everyway.apps.files import append_line
from everyway.generate import load
from everyway.metrics.report import evaluate

GUIDANCE = {
    "none": {"guidance": 1.0},
    "zero-shot": {"guidance": 3.0, "null": "empty"},
    "learned null": {"guidance": 3.0, "null": "learned"},
}
STEPS = (9, 5, 3)
"""A picture has nine tokens, so that nine steps of purity sampling settle one each."""
SAMPLERS = ("ancestral", "purity")
ROWS = ("t2i.one", "t2i.two")
ASKED = ("model_hash", "steps", "sampler", "guidance", "n")


def table(model_name: str, n: int, out: Path, first: int = 0, every: int = 1) -> list[dict]:
    """Appends each `every`-th row from `first` that OUT lacks; returns all rows of OUT."""
    model = load(model_name)
    for steps, sampler, guidance in list(product(STEPS, SAMPLERS, GUIDANCE))[first::every]:
        row = dict(zip(ASKED, (model.hash, steps, sampler, guidance, n)))
        if not any(row.items() <= made.items() for made in rows_of(out)):
            settings = {"steps": steps, "sampler": sampler, **GUIDANCE[guidance]}
            report = evaluate(model, "scenes", n, rows=ROWS, settings=settings)
            row |= {name: report["rows"][name]["all_correct"] for name in ROWS}
            row |= {"seconds": report["protocol"]["seconds"]}
            append_line(out, json.dumps(row))
            print(line(row), flush=True)
    return rows_of(out)


def rows_of(out: Path) -> list[dict]:
    return (
        [json.loads(text) for text in out.read_text("utf-8").splitlines()] if out.exists() else []
    )


def line(row: dict) -> str:
    scores = ["{value:.3f} ({low:.3f} to {high:.3f})".format(**row[name]) for name in ROWS]
    cells = (row["steps"], row["sampler"], row["guidance"], *scores, row["n"])
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="mini-vq")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--share", default="0/1", help="as 0/2: the first of two processes")
    parser.add_argument("--out", type=Path, default=Path("experiments/vq_table.jsonl"))
    args = parser.parse_args()
    first, every = (int(number) for number in args.share.split("/"))
    rows = table(args.model, args.n, args.out, first, every)
    print("| steps | sampler | guidance | one object right | two objects right | n |")
    print("|---|---|---|---|---|---|")
    for row in sorted(
        rows, key=lambda r: (r["steps"], r["sampler"], list(GUIDANCE).index(r["guidance"]))
    ):
        print(line(row))


if __name__ == "__main__":
    main()
