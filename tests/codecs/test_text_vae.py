"""The text latents of autoencoders: the authors' numbers, and what every one of them promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from everyway.codecs import bundle
from everyway.codecs.text_tokens import SPECIAL, word_tokens
from everyway.codecs.text_vae import SMALL_READER, SMALL_WRITER, SequenceText, VectorText
from formula import FOLDER, filled, normal

GOLDEN = FOLDER.with_name("versatile") / "d_optimus_tiny.npz"
NAMES = {
    "reader.": "encoder.",
    "moments.": "encoder.linear.",
    "writer.": "decoder.",
    "memory.": "decoder.transformer.linear.",
    "everywhere.": "decoder.transformer.linear_emb.",
}
ATOL = 2e-5
TEXTS = ["a fox on blue", "a small rocket left of a cactus", "a pizza"]


def test_one_vector_gives_the_published_numbers():
    """BERT of 61 words, GPT-2 of 67: the vocabularies differ, as published."""
    with np.load(GOLDEN) as file:
        golden = {k: torch.from_numpy(file[k]) for k in file.files}
    reader = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40,
    )  # fmt: skip
    writer = dict(n_embd=32, n_layer=3, n_head=4, n_positions=40)
    words = " ".join(f"word{i}" for i in range(67 - len(SPECIAL)))
    codec = VectorText(word_tokens([words]), 8, 24, reader, writer)
    codec.reader.resize_token_embeddings(61)
    for name, parameter in codec.named_parameters():
        ours = next(start for start in NAMES if name.startswith(start))
        theirs = name.replace(ours, NAMES[ours], 1)
        parameter.data.copy_(filled(theirs, tuple(parameter.shape)))
    codec.eval()
    mean, logvar = codec.posterior(golden["bert_input_ids"])
    latent = normal("input:optimus_z", (2, 24))[:, None]
    logits = codec.written(latent, golden["gpt2_input_ids"])
    for name, value in (("mu", mean[:, 0]), ("logvar", logvar[:, 0]), ("gpt2_logits", logits)):
        torch.testing.assert_close(value, golden[name], rtol=0, atol=ATOL)
    codec.memory.weight.data.zero_()
    assert not torch.allclose(codec.written(latent, golden["gpt2_input_ids"]), logits, atol=0.1)


@pytest.fixture(scope="module", params=["VectorText", "SequenceText"])
def codec(request):
    """Of either kind, taught three sentences."""
    sizes: dict = {"dim": 32} if request.param == "VectorText" else {"length": 8, "dim": 4}
    steps = 150 if request.param == "VectorText" else 60  # one vector learns more slowly
    sizes["reader"] = SMALL_READER | {"hidden_size": 64, "num_hidden_layers": 1}
    sizes["writer"] = SMALL_WRITER | {"n_embd": 64}
    settings = {"kind": request.param, "tokenizer": word_tokens(TEXTS), "longest": 12, **sizes}
    codec = bundle.codec("text", settings, "TextLatent").requires_grad_(True)
    optimiser = torch.optim.AdamW(codec.parameters(), 2e-3, weight_decay=0.0)
    ids = codec.tokens.encode(TEXTS)
    for _ in range(steps):
        wrong, _ = codec.losses(ids, torch.zeros(len(ids), codec.length, codec.dim), free=0.0)
        optimiser.zero_grad()
        wrong.mean().backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimiser.step()
    codec.measure(TEXTS)
    return codec.requires_grad_(False)


def test_what_was_learned_is_read_back(codec):
    state = codec.encode(TEXTS)
    assert state.shape == (3, codec.length, codec.dim)
    assert codec.decode(state) == TEXTS


def test_padding_is_not_read(codec):
    short, long = codec.tokens.encode(TEXTS)[:, :9], codec.tokens.encode(TEXTS)
    for a, b in zip(codec.posterior(codec.begun(short)), codec.posterior(codec.begun(long))):
        torch.testing.assert_close(a[:, :8], b[:, :8], rtol=0, atol=1e-5)


def test_writing_looks_at_no_later_word(codec):
    ids = codec.begun(codec.tokens.encode(TEXTS))
    other = torch.cat([ids[:, :4], ids[:, 4:].flip(1)], 1)
    latent = torch.randn(3, codec.length, codec.dim)
    one, two = (codec.written(latent, given)[:, :4] for given in (ids, other))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_free_nats_cost_what_they_are_and_teach_nothing(codec):
    ids = codec.tokens.encode(TEXTS)
    draw = torch.zeros(3, codec.length, codec.dim)
    exact, free = (codec.losses(ids, draw, nats)[1] for nats in (0.0, 100.0))
    mean, logvar = codec.posterior(codec.begun(ids))
    prior = torch.distributions.Normal(0.0, 1.0)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    true = torch.distributions.kl_divergence(posterior, prior).flatten(1).sum(1)
    torch.testing.assert_close(exact, true, rtol=1e-4, atol=1e-4)
    assert (free == 100.0 * codec.length * codec.dim).all()


def test_a_sequence_is_of_as_many_vectors_as_it_says():
    codec = SequenceText(word_tokens(TEXTS), 12, 5, 4)
    assert codec.encode(TEXTS).shape == (3, 5, 4)
