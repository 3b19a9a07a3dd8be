"""Trains the codecs of `mini` on Emoji Scenes, a part at a time; run a part again to go on.

python -m everyway.train.codecs tokenizer --out runs/codecs
python -m everyway.train.codecs image --out runs/codecs --minutes 60
python -m everyway.train.codecs image_embed --out runs/codecs --minutes 40
python -m everyway.train.codecs text --out runs/codecs --minutes 30
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from everyway.checkpoints.store import StoreError, write_module, write_text
from everyway.codecs.encoders import SMALL_TEXT, SMALL_VISION, Contrastive
from everyway.codecs.image_vae import SMALL, ImageVAE, psnr, reconstruction_loss
from everyway.codecs.text_latent import SMALL_DECODER, TextLatent, exact_share
from everyway.codecs.text_tokens import Tokens, train_tokens
from everyway.data.emoji import OBJECTS, EmojiScenes
from everyway.data.sample import Sample, to_tensor
from everyway.train.fit import Report, fit, say
from everyway.train.looks import codes_of_words, effects_of_words
from everyway.train.stopping import stoppable

LENGTH, DIM = 24, 64  # of the text latent
WORDS = {"hidden_size": DIM}
"""What the text latent reads: a vector a token that says what it looks like.  CLIP's last states
are mixed by what a match to pictures needs: where a thing is could not be read from them by a
linear map; and its token embeddings say nothing of what things look like (docs/LOG.md)."""
PORTRAITS = 12
"""Of every object, from which the shapes of words are taken."""
SCENES_RIDGE, PORTRAITS_RIDGE = 30.0, 3.0
SCENES_WEIGHT = 0.5
"""Of what scenes tell of a word, beside what portraits tell."""
TEST_SEED = 700_001  # of the scenes that codecs are measured on, used for nothing else
KL = 1e-4 / 1024  # weight of the posterior's summed divergence: 1e-4 an element
LATENT_NOISE = 0.1  # of a latent's own spread, added while the decoder learns
TEXT_NOISE = 0.5  # the text decoder reads through noise of sigma uniform in [0, 0.5]


def train_tokenizer(out: Path, seed: int = 11, captions: int = 40_000, size: int = 2000) -> str:
    """The shared BPE of both languages, into tokenizer.json."""
    data = EmojiScenes(seed=seed)
    spec = train_tokens((c for i in range(captions // 2) for c in data.sample(i).captions), size)
    write_text(out / "tokenizer.json", spec)
    return spec


def train_image(
    out: Path,
    minutes: float,
    decoder: bool = False,
    seed: int = 12,
    batch: int = 16,
    report: Report = say,
) -> dict[str, Any]:
    """The autoencoder.  Returns facts, psnr_db of unseen scenes among them.

    decoder: train only what follows the latent, which stays as it is in `out`.
    """
    torch.manual_seed(seed)
    config = {"autoencoder": SMALL, "fold": 4}
    codec, name = ImageVAE(**config), "image"
    if decoder:
        name = "image.decoder"
        codec = _frozen(out, "image", codec)
        codec.autoencoder.decoder.requires_grad_(True)
        codec.autoencoder.post_quant_conv.requires_grad_(True)
    data = EmojiScenes(seed=seed + decoder)

    def loss_at(step: int) -> Tensor:
        wanted = pictures(data, range(step * batch, (step + 1) * batch))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        with torch.set_grad_enabled(not decoder):
            posterior = codec.posterior(wanted)
        latent = posterior.sample(generator)
        spread = latent.detach().std((0, 2, 3), keepdim=True)
        latent = latent + LATENT_NOISE * spread * torch.randn(latent.shape, generator=generator)
        made = codec.reconstruct(latent)
        return reconstruction_loss(made, wanted) + KL * posterior.kl().mean()

    facts = fit(codec, loss_at, out / f"{name}.state.safetensors", minutes=minutes, lr=1e-3,
                report=report)  # fmt: skip
    with torch.no_grad():
        if not decoder:
            sample = pictures(data, range(10**6, 10**6 + 1000))
            latents = torch.cat([codec.posterior(part).mean for part in sample.split(50)])
            codec.whiten.measure(latents.movedim(1, -1).flatten(0, 2))
        unseen = pictures(EmojiScenes(seed=TEST_SEED), range(200))
        made = torch.cat([codec.decode(codec.encode(part)) for part in unseen.split(50)])
    facts["psnr_db"] = round(psnr(made, unseen).item(), 2)
    return _save(out, "image", codec, config, facts)


def train_image_embed(
    out: Path, minutes: float, seed: int = 13, batch: int = 128, report: Report = say
):
    """CLIP: both towers against each other.  Returns facts, how many of 100 pictures find their own
    English and Korean captions among them."""
    torch.manual_seed(seed)
    tokens = Tokens(_tokenizer(out), LENGTH)
    net = Contrastive(SMALL_VISION, {**SMALL_TEXT, "vocab_size": len(tokens)})
    data = EmojiScenes(seed=seed)

    def loss_at(step: int) -> Tensor:
        samples = [data.sample(i) for i in range(step * batch, (step + 1) * batch)]
        texts = [s.captions[i % 2] for i, s in enumerate(samples)]
        return net(to_tensor([s.image for s in samples]), tokens.encode(texts), tokens.end)

    facts = fit(net, loss_at, out / "contrastive.state.safetensors", minutes=minutes, lr=1e-3,
                report=report)  # fmt: skip
    with torch.no_grad():
        sample = pictures(data, range(10**6, 10**6 + 2000))
        features = torch.cat([net.image.features(part) for part in sample.split(100)])
        net.image.whiten.measure(features)
        unseen = [EmojiScenes(seed=TEST_SEED).sample(i) for i in range(500)]
        for number, language in enumerate(("en", "ko")):
            facts[f"retrieval_{language}"] = _retrieval(net, tokens, unseen, number)
    return _save(out, "image_embed", net.image, {"vision": SMALL_VISION}, facts)


def train_text(
    out: Path,
    minutes: float,
    decoder: bool = False,
    seed: int = 14,
    batch: int = 128,
    scenes: int = 12_000,
    report: Report = say,
) -> dict[str, Any]:
    """The text latent, of what words look like in the image codec's latents of `scenes`, and its
    decoder.  Returns facts: the exact shares at sigma 0 and 0.3 (the gate is 0.99).

    decoder: as in `train_image`.
    """
    torch.manual_seed(seed)
    config = {
        "tokenizer": _tokenizer(out),
        "length": LENGTH,
        "dim": DIM,
        "text": WORDS,
        "decoder": SMALL_DECODER,
    }
    state = out / f"text{'.decoder' if decoder else ''}.state.safetensors"
    codec = TextLatent(**config).requires_grad_(False)
    if decoder:
        codec = _frozen(out, "text", codec)
    elif not state.exists():
        codec.states.table.weight.copy_(_codes(out, codec.tokens, seed, scenes))
        codec.narrow.load_state_dict({"weight": torch.eye(DIM), "bias": torch.zeros(DIM)})
        codec.measure(captions(EmojiScenes(seed=seed), range(10**6, 10**6 + 4000)))
    codec.widen.requires_grad_(True)
    codec.decoder.requires_grad_(True)
    data = EmojiScenes(seed=seed + decoder)

    def loss_at(step: int) -> Tensor:
        ids = codec.tokens.encode(captions(data, range(step * batch, (step + 1) * batch)))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        sigma = TEXT_NOISE * torch.rand(batch, 1, 1, generator=generator)
        noise = sigma * torch.randn(batch, LENGTH, DIM, generator=generator)
        return codec.loss(codec.latent(ids) + noise, ids)

    facts = fit(codec, loss_at, state, minutes=minutes, lr=2e-3, report=report)
    unseen = captions(EmojiScenes(seed=TEST_SEED), range(1000))
    for sigma in (0.0, 0.3):
        facts[f"exact_at_{sigma}"] = exact_share(codec, unseen, sigma)
    return _save(out, "text", codec, config, facts)


@torch.no_grad()
def _codes(out: Path, tokens: Tokens, seed: int, scenes: int) -> Tensor:
    """(vocabulary, DIM): what each token looks like, from scenes with two captions each.

    Over scenes in which things stand anywhere the regression finds where and in what colour; their
    shapes it finds in portraits alone.
    """
    settings = json.loads(_made(out, "image.json").read_text("utf-8"))
    image = _frozen(out, "image", ImageVAE(**settings))
    data = EmojiScenes(seed=seed)

    def rows(sample: Callable[[int], Sample], count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, count, 50):
            samples = [sample(i) for i in range(start, min(start + 50, count))]
            ids = tokens.encode([caption for s in samples for caption in s.captions])
            yield ids, image.encode(to_tensor([s.image for s in samples])).repeat_interleave(2, 0)

    among, counts = effects_of_words(rows(data.sample, scenes), len(tokens), SCENES_RIDGE)
    portraits = rows(data.portrait, PORTRAITS * len(OBJECTS))
    alone, _ = effects_of_words(portraits, len(tokens), PORTRAITS_RIDGE)
    return codes_of_words(torch.cat([SCENES_WEIGHT * among, alone], 1), counts, DIM, seed)


PARTS = {"image": train_image, "image_embed": train_image_embed, "text": train_text}


def config_of(folder: Path) -> dict[str, dict[str, Any]]:
    """modality -> settings of the codecs that `folder` holds, for `codecs.bundle.build`.

    Raises StoreError where one is missing.
    """
    return {n: json.loads(_made(folder, f"{n}.json").read_text("utf-8")) for n in PARTS}


def restore(folder: Path, codecs: Mapping[str, nn.Module]) -> None:
    """Load the weights of `folder` into codecs built from its `config_of`."""
    for name, codec in codecs.items():
        codec.load_state_dict(load_file(_made(folder, f"{name}.safetensors")))


def _made(folder: Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise StoreError(
            f"{path} is missing; train the codecs first: python -m everyway.train.codecs --help"
        )
    return path


def pictures(data: EmojiScenes, indices: range) -> Tensor:
    """(B, 3, 64, 64) in [-1, 1]."""
    return to_tensor([data.render(data.scene(i), i) for i in indices])


def captions(data: EmojiScenes, indices: range) -> list[str]:
    """One caption a scene, the languages in turn."""
    return [data.sample(i, lang=("en", "ko")[i % 2]).captions[0] for i in indices]


def _retrieval(net: Contrastive, tokens: Tokens, samples: list, language: int) -> float:
    """The share of pictures whose own caption is the likeliest of a hundred."""
    right = 0
    for start in range(0, len(samples), 100):
        part = samples[start : start + 100]
        a = net.image.features(to_tensor([s.image for s in part]))
        ids = tokens.encode([s.captions[language] for s in part])
        b = nn.functional.normalize(net.sentence(ids, tokens.end), dim=-1)
        right += int(((a @ b.T).argmax(1) == torch.arange(len(part))).sum())
    return right / len(samples)


def _frozen(out: Path, name: str, codec: nn.Module) -> nn.Module:
    """The codec as `out` has it, nothing of it to be trained yet."""
    codec.load_state_dict(load_file(_made(out, f"{name}.safetensors")))
    return codec.requires_grad_(False)


def _tokenizer(out: Path) -> str:
    path = out / "tokenizer.json"
    return path.read_text(encoding="utf-8") if path.exists() else train_tokenizer(out)


def _save(out: Path, name: str, codec: nn.Module, config: dict, facts: dict) -> dict[str, Any]:
    write_module(out / f"{name}.safetensors", codec)
    write_text(out / f"{name}.json", json.dumps(config, ensure_ascii=False))
    write_text(out / f"{name}.facts.json", json.dumps(facts))
    return facts


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="train the codecs of mini")
    parser.add_argument("part", choices=["tokenizer", *PARTS])
    parser.add_argument("--out", type=Path, default=Path("runs/codecs"))
    parser.add_argument("--minutes", type=float, default=30.0, help="in all, over every session")
    parser.add_argument(
        "--decoder",
        action="store_true",
        help="only what follows the latent (image, text), which a trained system depends on",
    )
    args = parser.parse_args()
    if args.decoder and args.part not in ("image", "text"):
        parser.error(f"{args.part} has no decoder")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "tokenizer":
        say(f"{len(Tokens(train_tokenizer(args.out), LENGTH))} tokens")
    else:
        settings = {"decoder": True} if args.decoder else {}
        say(json.dumps(PARTS[args.part](args.out, args.minutes, **settings)))
    return 0


if __name__ == "__main__":
    raise SystemExit(stoppable(main))
