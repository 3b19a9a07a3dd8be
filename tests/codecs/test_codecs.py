"""Codecs: shapes and ranges, whitening, what texts are refused, full sizes by config."""

from __future__ import annotations

import json

import pytest
import torch

from everyway.checkpoints import codec_folder
from everyway.checkpoints.store import StoreError
from everyway.codecs import bundle
from everyway.codecs.encoders import (
    CLIP_B32_VISION,
    CLIP_L14_TEXT,
    Contrastive,
    ImageEmbedding,
    TextStates,
    prepared,
)
from everyway.codecs.image_vae import SMALL, STABLE_DIFFUSION, ImageVAE, psnr, reconstruction_loss
from everyway.codecs.text_latent import GPT2_SMALL, TextLatent, exact_share
from everyway.codecs.text_tokens import PromptError, Tokens, train_tokens
from everyway.codecs.whiten import Whiten
from everyway.data.emoji import EmojiScenes
from tiny import DECODER, TEXT

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "projection_dim": 8,
}


@pytest.fixture(scope="module")
def spec() -> str:
    data = EmojiScenes(seed=1)
    return train_tokens((c for i in range(4000) for c in data.sample(i).captions), 2000)


@pytest.fixture(scope="module")
def config(spec) -> dict:
    text = {"tokenizer": spec, "length": 24, "dim": 16, "text": TEXT, "decoder": DECODER}
    return {"image": {"autoencoder": SMALL}, "image_embed": {"vision": VISION}, "text": text}


@pytest.fixture(scope="module")
def codecs(config):
    torch.manual_seed(0)
    return bundle.build(config)


def test_whitening_gives_unit_variance_and_is_undone():
    for axis, shape in ((-1, (50, 7, 3)), (0, (50, 3, 7, 7))):
        x = 5 + 3 * torch.randn(shape)
        whiten = Whiten(3, axis)
        assert torch.equal(whiten(x), x)
        whiten.measure(x.movedim(1 if axis == 0 else -1, -1).flatten(0, -2))
        z = whiten(x)
        assert abs(z.mean()) < 1e-5 and abs(z.std() - 1) < 1e-2
        torch.testing.assert_close(whiten.inverse(z), x)


def test_pictures_there_and_back(codecs):
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    state = codecs["image"].encode(x)
    back = codecs["image"].decode(state)
    assert state.shape == (2, 4, 16, 16) and back.shape == x.shape
    assert back.abs().max() <= 1 and torch.isfinite(reconstruction_loss(back, x))
    assert codecs["image_embed"].encode(x).shape == (2, 1, 8)
    assert psnr(x, x) > 90 and psnr(x, -x) < 10


def test_texts_there_and_back(codecs):
    state = codecs["text"].encode(["a fox on blue", "여우, 파란 배경"])
    lengths = codecs["text"].tokens.mask(codecs["text"].tokens.encode(["a fox on blue"])).sum()
    assert state.shape == (2, 24, 16)
    assert state[0, lengths:].abs().max() == 0 and state[0, lengths - 1].abs().max() > 0
    read = codecs["text"].decode(state)
    assert len(read) == 2 and all(isinstance(t, str) for t in read)
    assert read == codecs["text"].decode(state)
    assert 0 <= exact_share(codecs["text"], ["a fox on blue"], 0.3) <= 1


def test_tokens_are_exact_on_every_caption(spec):
    tokens = Tokens(spec, 24)
    data = EmojiScenes(seed=2)
    texts = [c for i in range(300) for c in data.sample(i).captions]
    ids = tokens.encode(texts)
    assert tokens.decode(ids) == texts
    assert ids.shape == (600, 24) and bool((ids == tokens.end).sum(1).eq(1).all())
    assert tokens.decode(tokens.encode(["  A  FOX\non Blue "])) == ["a fox on blue"]


@pytest.mark.parametrize(
    ("text", "said"), [("  ", "empty"), ("fox " * 40, "shorten"), ("☃", "read nothing of")]
)
def test_what_cannot_be_read_is_said(spec, text, said):
    with pytest.raises(PromptError, match=said):
        Tokens(spec, 24).encode([text])


def test_the_text_decoder_learns(codecs, spec):
    """A few steps of the real loss bring it well below that of guessing tokens at random."""
    torch.manual_seed(0)
    text = {"tokenizer": spec, "length": 24, "dim": 16, "text": TEXT, "decoder": DECODER}
    codec, data = TextLatent(**text), EmojiScenes(seed=3)
    optimiser = torch.optim.AdamW(codec.parameters(), 3e-3)
    losses = []
    for step in range(40):
        texts = [data.sample(i, "en").captions[0] for i in range(16 * step, 16 * step + 16)]
        ids = codec.tokens.encode(texts)
        loss = codec.loss(codec.latent(ids) + 0.2 * torch.randn(16, 24, 16), ids)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 6 and losses[-1] < 4
    codec.measure(texts)
    state = codec.encode(texts)
    real = state[codec.tokens.mask(ids)]
    assert abs(real.mean()) < 1e-3 and abs(real.std() - 1) < 0.02


def test_contrastive_loss_prefers_the_right_pairs(spec):
    torch.manual_seed(0)
    tokens = Tokens(spec, 24)
    net = Contrastive(VISION, {**TEXT, "vocab_size": len(tokens)})
    samples = [EmojiScenes(seed=4).sample(i) for i in range(8)]
    images = torch.stack([torch.from_numpy(s.image) for s in samples]).permute(0, 3, 1, 2)
    images, ids = images.float() / 127.5 - 1, tokens.encode([s.captions[0] for s in samples])
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(40):
        loss = net(images, ids, tokens.end)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.5 < net(images, ids.flip(0), tokens.end)


def test_a_folder_of_codecs_is_read_back(tmp_path, config, codecs):
    from safetensors.torch import save_file

    for name, codec in codecs.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(config[name]))
        weights = {k: v.contiguous().clone() for k, v in codec.state_dict().items()}
        save_file(weights, tmp_path / f"{name}.safetensors")
    again = bundle.build({name: codec_folder.settings(tmp_path, name) for name in codecs})
    for name, codec in again.items():
        codec_folder.fill(tmp_path, name, codec)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(again["image"].encode(x), codecs["image"].encode(x))
    assert torch.equal(again["text"].encode(["a fox"]), codecs["text"].encode(["a fox"]))
    (tmp_path / "text.safetensors").unlink()
    with pytest.raises(
        StoreError, match="text.safetensors is missing; make it first: everyway train"
    ):
        codec_folder.fill(tmp_path, "text", again["text"])
    with pytest.raises(StoreError, match="everyway train codec-image"):
        codec_folder.settings(tmp_path / "nowhere", "image")


def test_full_sizes_plug_into_the_same_classes():
    """Counts of the published models, without their weights."""

    def count(module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        vae = ImageVAE(autoencoder=STABLE_DIFFUSION, fold=1, scale=0.18215)
        assert count(vae) == 83_653_863
        assert count(ImageEmbedding(CLIP_B32_VISION).model) == 87_849_216
        assert count(TextStates(CLIP_L14_TEXT)) == 123_060_480
        from transformers import GPT2Config, GPT2LMHeadModel

        assert count(GPT2LMHeadModel(GPT2Config(**GPT2_SMALL))) == 124_439_808 + 768


def test_pictures_are_prepared_as_clip_wants_them():
    white = prepared(torch.ones(1, 3, 96, 96), 32)
    assert white.shape == (1, 3, 32, 32)
    torch.testing.assert_close(white[0, 0, 0, 0], torch.tensor((1 - 0.48145466) / 0.26862954))
    with pytest.raises(ValueError, match="in_channels"):
        ImageVAE(autoencoder=SMALL, fold=2)
