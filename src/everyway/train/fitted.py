"""Fits the codecs of `mini` and `mini-vq` to built-in scenes: tokenizer, cells, thumbnails, token
table and image tokens.

python -m everyway.train.fitted --out runs/codecs --data lattice

They are linear, so nothing is trained: all of them take half a minute.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from everyway.checkpoints import codec_folder
from everyway.codecs.cell_vq import CellVQ
from everyway.codecs.image_vae import psnr
from everyway.codecs.patches import PatchContext
from everyway.codecs.pca import CellPCA, ThumbnailPCA
from everyway.codecs.text_latent import exact_share
from everyway.codecs.text_tokens import word_tokens
from everyway.codecs.token_table import TokenTable
from everyway.data import emoji
from everyway.data.captions import Lexicon
from everyway.data.lattice import GRID, LEXICON, Lattice, draw
from everyway.data.sample import Sample, to_tensor
from everyway.train import sources
from everyway.train.looks import codes_of_words, effects_of_words

THUMBNAILS = {"side": 24, "channels": 64}
TOKENS = {"cell": 32, "channels": 128}  # of a codebook, whose cells are few
DIM = 64  # of the text latent
LANGUAGE = 4
"""Numbers of each token that tell its language alone: without them an English word lies nearer to
its Korean one than to any other, and half of the captions mixed the two (docs/LOG.md)."""
RIDGE = 30.0
PORTRAITS, PORTRAITS_RIDGE = 12, 3.0
"""Of every object, where the data has some: what things look like that stand anywhere in scenes."""
WHERE = 0.5
"""Of what a word says of where things are, beside what it says of things wherever they are."""
SEED, TEST_SEED = 21, 700_001


@dataclass(frozen=True, kw_only=True)
class Fit:
    """cells: settings of the `CellPCA`.  length: of the text latent.

    lexicon: of the `TokenTable`, which reads any wording as the plain one; None where wordings are
    learned.  bigrams: whether the `TokenTable` counts which word follows which.
    tokens: of a `CellVQ`, where the different cells are few.
    context: of the `PatchContext` that sees pictures, where that is no cells.
    """

    cells: dict[str, int]
    length: int
    lexicon: Lexicon | None = None
    bigrams: bool = False
    tokens: dict[str, int] | None = None
    context: dict[str, int] | None = None

    @property
    def text(self) -> dict[str, Any]:
        lexicon = self.lexicon.to_json() if self.lexicon else None
        return {"length": self.length, "dim": DIM, "lexicon": lexicon}


FITS = {
    "lattice": Fit(
        cells={"cell": 32, "channels": 192}, length=12, lexicon=LEXICON, bigrams=True, tokens=TOKENS
    ),
    "lattice-styled": Fit(
        cells={"cell": 32, "channels": 192}, length=12, lexicon=LEXICON, context={"patch": 8}
    ),
    "lattice-246": Fit(cells={"cell": 32, "channels": 256}, length=16, lexicon=emoji.LEXICON),
    "emoji": Fit(cells={"cell": 8, "channels": 64}, length=24),
}
"""Built-in data -> what its codecs are.  Things that stand anywhere need small cells: 64 of the 192
numbers of 8x8 pixels keep 33 dB."""


@torch.no_grad()
def fit_codecs(out: Path, scenes: int = 12_000, name: str = "lattice") -> dict[str, dict[str, Any]]:
    """Writes the codecs into `out`, each NAME.safetensors, .json and .facts.json; returns metadata.

    name: of the data, one of FITS.

    Metadata: psnr_db of unseen pictures, through latents and through tokens; the shares of captions
    read back exactly from latents with noise of sigma 0, 0.3 and 0.6.
    """
    fit = FITS[name]
    data, test = (sources.open_data(name, seed) for seed in (SEED, TEST_SEED))
    spec = word_tokens(c for i in range(scenes) for c in data.described(i)[1])
    settings = {"tokenizer": spec, **fit.text}
    image, embed = CellPCA(**fit.cells), ThumbnailPCA(**THUMBNAILS)
    text = TokenTable(**settings)
    if fit.bigrams:
        settings["pairs"] = text.count(c for i in range(scenes) for c in data.described(i)[1])
    some = _pictures(data, range(min(scenes, 3000)))
    image.fit(some)
    embed.fit(some)
    text.fit(_codes(text, image, data, scenes))
    unseen = _pictures(test, range(500))
    captions = [said[i % len(said)] for i in range(500) for said in [test.described(i)[1]]]
    made: list[tuple[str, nn.Module, dict[str, Any], dict[str, Any]]] = [
        ("image", image, fit.cells, _quality(image, unseen)),
        ("image_embed", embed, THUMBNAILS, {}),
        ("text", text, settings, {
            f"exact_at_{s}": exact_share(text, captions, s) for s in (0.0, 0.3, 0.6)
        }),
    ]  # fmt: skip
    if fit.context:
        context = PatchContext(side=some.shape[-1], **fit.context)
        context.fit(some)
        made.append(("image_condition", context, {"side": context.side, **fit.context}, {}))
    if fit.tokens:
        cells = to_tensor(cells_of(data, scenes))
        tokens = CellVQ(len(cells), **fit.tokens)
        tokens.fit(cells)
        own = {"codes": len(cells), **fit.tokens}
        made.append(("image_vq", tokens, own, _quality(tokens, unseen)))
    for part, codec, config, metadata in made:
        codec_folder.write(out, part, codec, {"kind": type(codec).__name__, **config}, metadata)
    return {part: metadata for part, _, _, metadata in made}


def _codes(text: TokenTable, image: CellPCA, data: Any, scenes: int) -> Tensor:
    """(vocabulary, DIM): what each token looks like, and its language."""
    languages = torch.zeros(len(text.tokens), 2, dtype=torch.bool)

    def rows(sample: Callable[[int], Sample], count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, count, 100):
            samples = [sample(i) for i in range(start, min(start + 100, count))]
            latents = image.encode(to_tensor([s.image for s in samples])).flatten(2)
            looks = torch.cat([latents.sum(2), WHERE * latents.flatten(1)], 1)
            for number in range(len(samples[0].captions)):
                ids = text.tokens.encode([s.captions[number] for s in samples])
                languages[ids.unique(), number % 2] = True
                yield ids, looks

    effects, counts = effects_of_words(rows(data.sample, scenes), len(text.tokens), RIDGE)
    if hasattr(data, "portrait"):
        shown = rows(data.portrait, PORTRAITS * len(emoji.OBJECTS))
        alone, _ = effects_of_words(shown, len(text.tokens), PORTRAITS_RIDGE)
        effects = torch.cat([effects, alone], 1)
    codes = codes_of_words(effects, counts, DIM - LANGUAGE, SEED)
    side = languages[:, 1].float() - languages[:, 0].float()  # -1 English, 1 Korean, 0 both
    return torch.cat([codes, side[:, None].expand(-1, LANGUAGE)], 1)


def cells_of(data: Lattice, scenes: int) -> list[np.ndarray]:
    """(CELL, CELL, 3) uint8 each: every different cell of the first scenes."""
    pictures = (draw(data.scene(i)) for i in range(scenes))
    cells = (c for p in pictures for row in np.split(p, GRID) for c in np.split(row, GRID, axis=1))
    return list({cell.tobytes(): cell for cell in cells}.values())


def _quality(codec: CellPCA | CellVQ, pictures: Tensor) -> dict[str, float]:
    return {"psnr_db": round(psnr(codec.decode(codec.encode(pictures)), pictures).item(), 2)}


def _pictures(data: Any, indices: range) -> Tensor:
    return to_tensor([data.sample(i).image for i in indices])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="fit linear codecs to built-in scenes")
    parser.add_argument("--out", type=Path, default=Path("runs/codecs"))
    parser.add_argument("--scenes", type=int, default=12_000)
    parser.add_argument("--data", choices=FITS, default="lattice")
    args = parser.parse_args()
    print(json.dumps(fit_codecs(args.out, args.scenes, args.data)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
