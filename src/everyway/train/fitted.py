"""Fits the codecs of `mini` and `mini-vq` to Emoji Lattice: tokenizer, cells, thumbnails, token
table and image tokens.

python -m everyway.train.fitted --out runs/codecs

They are linear, so nothing is trained: all of them take half a minute.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everyway.checkpoints import codec_folder
from everyway.codecs.cell_vq import CellVQ
from everyway.codecs.image_vae import psnr
from everyway.codecs.pca import CellPCA, ThumbnailPCA
from everyway.codecs.text_latent import exact_share
from everyway.codecs.text_tokens import word_tokens
from everyway.codecs.token_table import TokenTable
from everyway.data.lattice import GRID, LEXICON, Lattice, draw
from everyway.data.sample import to_tensor
from everyway.train.looks import codes_of_words, effects_of_words

CELLS = {"cell": 32, "channels": 192}
THUMBNAILS = {"side": 24, "channels": 64}
TOKENS = {"cell": 32, "channels": 128}  # of a codebook, whose cells are few
LENGTH, DIM = 12, 64  # of the text latent
LANGUAGE = 4
"""Numbers of each token that tell its language alone: without them an English word lies nearer to
its Korean one than to any other, and half of the captions mixed the two (docs/LOG.md)."""
RIDGE = 30.0
WHERE = 0.5
"""Of what a word says of where things are, beside what it says of things wherever they are."""
SEED, TEST_SEED = 21, 700_001


@torch.no_grad()
def fit_codecs(out: Path, scenes: int = 12_000) -> dict[str, dict[str, Any]]:
    """Writes the codecs into `out`, each NAME.safetensors, .json and .facts.json; returns facts.

    Facts: psnr_db of unseen pictures, through latents and through tokens; the shares of captions
    read back exactly from latents with noise of sigma 0, 0.3 and 0.6.
    """
    data, test = Lattice(seed=SEED, whole=0.75), Lattice(seed=TEST_SEED, whole=0.75)
    spec = word_tokens(c for i in range(scenes) for c in data.sample(i).captions)
    image, embed = CellPCA(**CELLS), ThumbnailPCA(**THUMBNAILS)
    text = TokenTable(spec, LENGTH, DIM, LEXICON.to_json())
    some = _pictures(data, range(min(scenes, 3000)))
    image.fit(some)
    embed.fit(some)
    text.fit(_codes(text, image, data, scenes))
    cells = to_tensor(cells_of(data, scenes))
    tokens = CellVQ(len(cells), **TOKENS)
    tokens.fit(cells)
    unseen = _pictures(test, range(500))
    captions = [test.sample(i).captions[i % 2] for i in range(500)]
    facts = {
        "image": _quality(image, unseen),
        "image_embed": {},
        "image_vq": _quality(tokens, unseen),
        "text": {f"exact_at_{s}": exact_share(text, captions, s) for s in (0.0, 0.3, 0.6)},
    }
    settings = {"tokenizer": spec, "length": LENGTH, "dim": DIM, "lexicon": LEXICON.to_json()}
    for name, codec, config in (
        ("image", image, CELLS),
        ("image_embed", embed, THUMBNAILS),
        ("image_vq", tokens, {"codes": len(cells), **TOKENS}),
        ("text", text, settings),
    ):
        config = {"kind": type(codec).__name__, **config}
        codec_folder.write(out, name, codec, config, facts[name])
    return facts


def _codes(text: TokenTable, image: CellPCA, data: Lattice, scenes: int) -> Tensor:
    """(vocabulary, DIM): what each token looks like, and its language."""
    languages = torch.zeros(len(text.tokens), 2, dtype=torch.bool)

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, scenes, 100):
            samples = [data.sample(i) for i in range(start, min(start + 100, scenes))]
            latents = image.encode(to_tensor([s.image for s in samples])).flatten(2)
            looks = torch.cat([latents.sum(2), WHERE * latents.flatten(1)], 1)
            for number in (0, 1):
                ids = text.tokens.encode([s.captions[number] for s in samples])
                languages[ids.unique(), number] = True
                yield ids, looks

    effects, counts = effects_of_words(rows(), len(text.tokens), RIDGE)
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


def _pictures(data: Lattice, indices: range) -> Tensor:
    return to_tensor([data.sample(i).image for i in indices])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="fit the codecs of Emoji Lattice")
    parser.add_argument("--out", type=Path, default=Path("runs/codecs"))
    parser.add_argument("--scenes", type=int, default=12_000)
    args = parser.parse_args()
    print(json.dumps(fit_codecs(args.out, args.scenes)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
