"""The mean of two networks, one trained on from the other: what the later stage taught, and what
it had begun to overwrite.

    python -m everyway.train.average FORMER LATER --share 0.75 --out FOLDER

Source: Wortsman et al., "Robust fine-tuning of zero-shot models", 2021, arXiv 2109.01903.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from everyway.checkpoints import store
from everyway.checkpoints.card import write_card
from everyway.errors import EverywayError, UsageError
from everyway.generate import Model, load


def average(former: Path, later: Path, share: float, out: Path) -> None:
    """A model folder whose network is (1 - share) former + share later, the rest of it `later`.

    Raises ValueError for a share outside 0 to 1 and for networks of other sizes or without a
    training, StoreError for folders that are no models, or cannot be written.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"--share {share}: it is from 0 to 1")
    a, b = (_opened(folder) for folder in (former, later))
    if not b.metadata.get("history"):
        raise UsageError(f"{later} was not trained here; give one trained on from {former}")
    theirs, weights = a.system.network.state_dict(), b.system.network.state_dict()
    if {k: v.shape for k, v in theirs.items()} != {k: v.shape for k, v in weights.items()}:
        raise UsageError(f"{former} and {later} have networks of other sizes; give two of one size")
    with torch.no_grad():
        mean = {k: theirs[k].float().lerp(v.float(), share) for k, v in weights.items()}
    metadata = {k: v for k, v in b.metadata.items() if k not in ("scores", "losses")}
    *before, last = metadata["history"]
    metadata["history"] = [*before, {**last, "averaged": share}]
    tensors = b.system.weights(mean)
    config = {"system": b.system.name, "config": dict(b.system.config)}
    store.save(out, config, tensors, metadata, None)
    write_card(out)


def _opened(folder: Path) -> Model:
    store.document(folder)  # a folder, and no shipped name
    return load(str(folder), device="cpu")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="average a network with one trained on from it")
    parser.add_argument("former", type=Path, help="a model folder")
    parser.add_argument("later", type=Path, help="one that was trained on from it")
    parser.add_argument("--share", type=float, default=0.5, help="of the later one, 0 to 1")
    parser.add_argument("--out", type=Path, required=True, help="the model folder that is written")
    args = parser.parse_args()
    try:
        average(args.former, args.later, args.share, args.out)
    except EverywayError as error:
        parser.error(str(error))
    print(json.dumps({"model": str(args.out), "share": args.share}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
