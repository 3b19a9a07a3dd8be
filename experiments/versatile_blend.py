"""A picture of one scene blended with a text of another: whose scene the result is, rate by rate.

    python experiments/versatile_blend.py MODEL [--pairs 20] [--mix attention] [--out DIR]

For every rate from 0 (the picture alone) to 1 (the text alone), what of either scene a result
shows: the share of its stated attributes that the nearest rendering has.  It writes a table and a
plot.
Source of the claim: Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332, section 3.4.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from everyway.data.captions import plain
from everyway.data.lattice import LEXICON, Lattice, draw
from everyway.data.sample import Scene
from everyway.generate import Model, load
from everyway.metrics import lattice, scenes
from everyway.metrics.plot import curves_svg
from everyway.request import MIXES

RATES = tuple(k / 10 for k in range(11))
OF = ("picture", "text")
"""Whose scene is scored."""


def blended(
    model: Model, pair: tuple[Scene, Scene], rate: float, seed: int, **settings
) -> Image.Image:
    """Out of a picture of the first scene and a text of the second, which has the share `rate`."""
    contexts = [
        {"image": Image.fromarray(draw(pair[0])), "weight": 1 - rate},
        {"text": plain(pair[1], LEXICON), "weight": rate},
    ]
    (made,) = model.generate(kind="image", contexts=contexts, seed=seed, **settings)
    return made.image


def score(scene: Scene, seen: Scene) -> float:
    """The share of a scene's attributes that are right in another one."""
    right = scenes.score(scene, seen).values()
    return sum(right) / len(right)


def table(model: Model, pairs: int, **settings) -> list[dict]:
    """A row a rate: the mean score of either scene over all pairs."""
    ground = Lattice(seed=1_000_000, count=1)
    chosen = [(ground.scene(2 * k), ground.scene(2 * k + 1)) for k in range(pairs)]
    rows = []
    for rate in RATES:
        made = [blended(model, pair, rate, k, **settings) for k, pair in enumerate(chosen)]
        seen = lattice.read(made)
        sums = {
            of: sum(score(pair[k], s) for pair, s in zip(chosen, seen)) for k, of in enumerate(OF)
        }
        rows.append({"rate": rate, **{of: total / pairs for of, total in sums.items()}, "n": pairs})
        print(line(rows[-1]), flush=True)
    return rows


def line(row: dict) -> str:
    return f"| {row['rate']:.1f} | {row['picture']:.2f} | {row['text']:.2f} | {row['n']} |"


def plot(rows: Sequence[Mapping[str, float]]) -> str:
    """Whose scene the result is, rate by rate, as SVG."""
    curves = {f"{of}'s scene": [(row["rate"], row[of]) for row in rows] for of in OF}
    return curves_svg(curves, "the text's share", "right", "a picture blended with a text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--mix", choices=MIXES, default="attention")
    parser.add_argument("--steps", type=int, help="of the sampler; by default the model's own")
    parser.add_argument("--out", type=Path, default=Path("out/versatile_blend"))
    args = parser.parse_args()
    print("| text's share | picture's scene | text's scene | n |\n|---|---|---|---|")
    rows = table(load(args.model), args.pairs, mix=args.mix, steps=args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.mix}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (args.out / f"{args.mix}.svg").write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
