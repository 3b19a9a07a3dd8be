"""The trainings of codecs are configs of the one loop: two steps of each, and what they leave."""

from __future__ import annotations

import json

import pytest
import torch

from everyway.checkpoints import codec_folder
from everyway.checkpoints.store import StoreError
from everyway.codecs import bundle
from everyway.codecs.text_tokens import train_tokens
from everyway.data.emoji import EmojiScenes
from everyway.train import codec, codec_image, encoder, text, text_vae, train
from everyway.train.config import CODECS, names, resolve


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Settings of a training of two steps, measured on little."""
    seen = range

    def few(*numbers):
        at = seen(*numbers)
        return at if len(at) <= 40 else at[:40]

    for module in (codec, codec_image, encoder, text, text_vae):
        monkeypatch.setattr(module, "range", few, raising=False)
    monkeypatch.setattr(  # that is tests/train/test_looks.py
        text, "codes_of_words", lambda effects, counts, dim, seed: torch.randn(len(effects), dim)
    )
    (tmp_path / "codecs").mkdir()
    captions = (c for i in range(1000) for c in EmojiScenes(seed=1).sample(i).captions)
    (tmp_path / "codecs" / "tokenizer.json").write_text(train_tokens(captions, 1500), "utf-8")
    return dict(codecs=str(tmp_path / "codecs"), batch=4, steps=2, budget_s=0)


def test_every_training_is_a_preset():
    versatile = {"nano-versatile", "mini-versatile"}
    ediffi = {"ediffi-nano", "ediffi-nano-root", "ediffi-nano-sr", "mini-ediffi", "mini-ediffi-sr"}
    assert {*CODECS, "nano", "mini", "small", "mini-vq"} | versatile | ediffi == set(names())
    for name in CODECS:
        assert resolve(name).system == name


def test_a_text_is_one_vector_or_a_sequence(quick, tmp_path):
    for length in (1, 6):
        own = {**quick, "length": length, "dim": 12}
        train("text-vae", **own, out=str(tmp_path / f"text-vae-{length}"))
        folder = tmp_path / "codecs"
        found = codec_folder.metadata(folder)["text"]
        assert found.keys() >= {"exact_at_0.0", "exact_at_0.3", "wrong", "divergence"}
        made = bundle.codec("text", codec_folder.settings(folder, "text"), "TextLatent")
        codec_folder.fill(folder, "text", made)
        state = made.encode(["a fox", "a small rocket on blue"])
        assert state.shape == (2, length, 12) and len(made.decode(state)) == 2


def test_the_divergence_counts_nothing_at_first():
    config = resolve("text-vae", {"anneal": "100", "divergence": "0.5"})
    learner = text_vae.TextVAELearner.__new__(text_vae.TextVAELearner)
    learner.config = config
    found = [learner.weight(step) for step in (0, 50, 75, 100, 1000)]
    assert found == [0.0, 0.0, 0.25, 0.5, 0.5]


def test_each_codec_trains_and_a_system_reads_them(quick, tmp_path):
    with pytest.raises(StoreError, match="everyway train codec-image"):
        train("text", **quick, out=str(tmp_path / "text"))
    for name in ("codec-image", "encoder", "text"):
        own = {"scenes": 40} if name == "text" else {}
        metadata = train(name, **quick, **own, out=str(tmp_path / name))
        assert metadata["step"] == 2
    folder = tmp_path / "codecs"
    train("codec-image", **quick, decoder=True, out=str(tmp_path / "decoder"))
    found = codec_folder.metadata(folder)
    assert found["image"]["psnr_db"] > 0 and found["text"].keys() >= {"exact_at_0.0", "loss"}
    assert found["image_embed"].keys() >= {"retrieval_0", "retrieval_1"}
    made = bundle.build({name: codec_folder.settings(folder, name) for name in found})
    for name, module in made.items():
        codec_folder.fill(folder, name, module)
    log = (tmp_path / "text" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[-1])["step"] == 2
