"""eDiff-I's two analyses of a model of scenes: what attention reads at which noise, and until when
another prompt changes the picture.  Writes two plots and prints both tables.

    python experiments/looking_inside.py [MODEL] [--n 40] [--out runs/inside]

Source of the analyses: Balaji et al., "eDiff-I", 2022, arXiv 2211.01324.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from everyway.atomic import atomic_write
from everyway.data.captions import plain
from everyway.data.lattice import LEXICON, Lattice
from everyway.data.sample import Scene
from everyway.generate import load
from everyway.media import to_picture
from everyway.metrics.inside import attention_by_noise, pictures_after_switch
from everyway.metrics.lattice import read
from everyway.metrics.plot import curves_svg
from everyway.metrics.scenes import score

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.93, 1.0)
"""Of the steps that follow the first prompt."""
SEED = 3_000_000
"""Of scenes that no training saw."""


def attention(model, scenes: list[Scene], out: Path) -> None:
    """The first plot: over the noise, the attention that the text has."""
    rows = attention_by_noise(model.system, [plain(s, LEXICON) for s in scenes])
    print("| t | to the words | to the rest of the text |\n|---|---|---|")
    for t, words, rest in rows:
        print(f"| {t:.3f} | {words:.3f} | {rest:.3f} |")
    curves = {
        "the words of the text": [(t, words) for t, words, _ in rows],
        "its padding": [(t, rest) for t, _, rest in rows],
    }
    said = "time (1 is noise alone)", "share of the picture's attention", model.name
    with atomic_write(out / "attention.svg") as file:
        file.write_text(curves_svg(curves, *said), encoding="utf-8")


def switch(model, scenes: list[Scene], others: list[Scene], out: Path) -> None:
    """The second plot: over the share of steps with the first prompt, how right either one is."""
    texts, second = ([plain(s, LEXICON) for s in part] for part in (scenes, others))
    rows = []
    print("| steps with the first prompt | its share right | the second's |\n|---|---|---|")
    for share in SHARES:
        drawn = pictures_after_switch(model.system, texts, second, share)
        seen = read([to_picture(pixels) for pixels in drawn])
        rows.append((share, right(scenes, seen), right(others, seen)))
        print("| {:.2f} | {:.3f} | {:.3f} |".format(*rows[-1]), flush=True)
    curves = {"first prompt": [r[:2] for r in rows], "second": [(r[0], r[2]) for r in rows]}
    said = "share of the steps with the first prompt", "stated and right", model.name
    with atomic_write(out / "switch.svg") as file:
        file.write_text(curves_svg(curves, *said), encoding="utf-8")


def right(stated: list[Scene], seen: list[Scene]) -> float:
    """The share of the stated attributes that are right."""
    made = [value for a, b in zip(stated, seen) for value in score(a, b).values()]
    return sum(made) / len(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="mini")
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/inside"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, data = load(args.model), Lattice(seed=SEED, count=2)
    scenes = [data.scene(index) for index in range(2 * args.n)]
    attention(model, scenes[: args.n], args.out)
    switch(model, scenes[: args.n], scenes[args.n :], args.out)


if __name__ == "__main__":
    main()
