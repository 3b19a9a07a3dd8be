"""Optimus, the contexts of CLIP, the autoencoder of Versatile Diffusion: the authors' numbers."""

from __future__ import annotations

import json

import pytest
import torch

from everyway.codecs.clip_contexts import ImageContext, TextContext
from everyway.codecs.image_vae import ImageVAE
from everyway.codecs.optimus import Optimus
from everyway.codecs.published_tokens import SentenceTokens, WordPieces
from everyway.errors import UsageError
from everyway.layouts import optimus as optimus_layout
from everyway.layouts.autoencoder import from_authors
from everyway.layouts.keymap import within
from formula import filled, normal
from published_versatile import FOLDER, arrays, compare, own_tokens

ATOL = 2e-5


def fill_optimus(codec: Optimus) -> Optimus:
    """With every tensor filled under its released name."""
    state = {k: v for k, v in codec.state_dict().items() if k != "decoder.lm_head.weight"}
    names = optimus_layout.to_authors(state)
    made = {k: filled(k, tuple(v.shape)) for k, v in names.items()}
    ours = optimus_layout.from_authors(made)
    codec.load_state_dict(ours | {"decoder.lm_head.weight": ours["decoder.transformer.wte.weight"]})
    return codec.eval()


@pytest.fixture(scope="module")
def optimus():
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    encoder = sizes | {"intermediate_size": 64, "max_position_embeddings": 40, "vocab_size": 61}
    decoder = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40, "vocab_size": 67}
    pieces, sentences = own_tokens(61, ("[CLS]", "[SEP]")), own_tokens(64, ())
    made = Optimus(pieces, sentences, encoder=encoder, decoder=decoder, dim=24)
    assert made.written.marks == [65, 66]
    return fill_optimus(made)


@torch.no_grad()
def test_bert_reads_as_the_authors(optimus):
    file = arrays("d_optimus_tiny")
    ids = torch.from_numpy(file["bert_input_ids"])
    read = optimus.encoder(ids, attention_mask=(ids > 0).long())
    compare(file, "bert_sequence_output", read.last_hidden_state, ATOL)
    compare(file, "bert_pooled", read.pooler_output, ATOL)
    mean, logvar = optimus.posterior(ids)
    compare(file, "mu", mean, ATOL)
    compare(file, "logvar", logvar, ATOL)


@torch.no_grad()
def test_gpt2_writes_as_the_authors(optimus):
    file = arrays("d_optimus_tiny")
    z, ids = normal("input:optimus_z", (2, 24)), torch.from_numpy(file["gpt2_input_ids"])
    compare(file, "gpt2_hidden", optimus.hidden(z, ids), ATOL)
    logits = optimus.logits(z, ids)
    compare(file, "gpt2_logits", logits, ATOL)
    head = optimus.decoder.lm_head
    compare(file, "gpt2_logits_emb_only", head(optimus.hidden(z, ids, memory=False)), ATOL)
    compare(file, "gpt2_logits_memory_only", head(optimus.hidden(z, ids, everywhere=False)), ATOL)
    wrong = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=1, reduction="none"
    )
    compare(file, "gpt2_sumloss_ignore1", wrong.view(2, -1).sum(1), 2e-4)


@pytest.mark.parametrize(("seed", "temperature"), [(0, 1.0), (1, 0.7)])
def test_sentences_are_drawn_as_the_authors_drew_them(optimus, seed, temperature):
    wanted = arrays("d_optimus_tiny")[f"sampled_seed{seed}_temp{temperature}"]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        ids = optimus.draw(normal("input:optimus_z", (2, 24))[:1], temperature, generator)
    assert ids[0].tolist() == wanted.tolist()


def test_a_sentence_ends_at_its_longest_and_is_the_same_twice(optimus):
    state = normal("input:optimus_z", (2, 24))[:, None]
    ids = optimus.draw(state[:, 0], temperature=0)
    assert ids.shape[1] <= 30 and all(66 in row for row in ids.tolist())
    assert optimus.decode(state) == optimus.decode(state)
    assert optimus.encode(["w5 W9", "w1"]).shape == (2, 1, 24)


def test_tokens_are_those_of_the_published_tokenizers():
    """The ids are of the real vocabularies; here the same rules on one of our own."""
    file = json.loads((FOLDER / "d_tokenizers.json").read_text(encoding="utf-8"))
    assert file["bert_truncation_len_for_100_words"] == 77 + 2
    pieces = WordPieces(own_tokens(61, ("[CLS]", "[SEP]")), 61)
    assert pieces.encode(["w1 " * 100]).shape == (1, 79)
    assert pieces.encode(["W1", "w1 w2"]).tolist() == [[59, 1, 60, 0], [59, 1, 2, 60]]
    assert pieces.remarks("w1") == [] and "100 word pieces" in pieces.remarks("w1 " * 100)[0]
    sentences = SentenceTokens(own_tokens(64, ()), 67)
    begin, end = sentences.marks
    ids = torch.tensor([[begin, *sentences.encode("w5  w7"), end, 3], [begin, 1, 2, 3, 4]])
    assert sentences.decode(ids) == ["w5 w7", "w1 w2 w3 w4"]
    with pytest.raises(UsageError, match="67 tokens and GPT-2 99"):
        SentenceTokens(own_tokens(64, ()), 99)


# -- CLIP -------------------------------------------------------------------------------------

_TOWER = {"intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
_TOWER |= {"projection_dim": 24, "hidden_act": "quick_gelu"}


def filled_clip(codec):
    made = {k: filled(f"clip.{k}", tuple(v.shape)) for k, v in codec.model.state_dict().items()}
    codec.model.load_state_dict(made)
    return codec.eval()


@pytest.fixture(scope="module")
def image_context():
    return filled_clip(
        ImageContext({**_TOWER, "hidden_size": 40, "image_size": 224, "patch_size": 14})
    )


@torch.no_grad()
def test_a_text_in_context_is_the_authors():
    sizes = {"hidden_size": 32, "vocab_size": 99, "max_position_embeddings": 77}
    marks = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 98}
    spec = own_tokens(99, ("<|startoftext|>", "<|endoftext|>"))
    codec = filled_clip(TextContext(spec, {**_TOWER, **sizes, **marks}))
    file = arrays("g_clip_context")
    made = codec.states(torch.from_numpy(file["text_ids"]))
    compare(file, "text_context", made, ATOL)
    own = codec.encode(["w3 w4"])
    assert own.shape == (1, 77, 24) and own[0, 3].norm() == pytest.approx(1, abs=1e-6)
    with pytest.raises(UsageError, match="99 tokens and the text network 100"):
        TextContext(spec, {**_TOWER, **sizes, **marks, "vocab_size": 100})


@torch.no_grad()
def test_a_picture_in_context_is_the_authors(image_context):
    file = arrays("g_clip_context")
    pixels = normal("input:clip_pixels", (1, 3, 224, 224))
    compare(file, "image_context", image_context.states(pixels), ATOL)
    mask = torch.ones(1, 1, 512, 512)
    mask[..., 300:] = 0
    mask[..., 100:200, 50:150] = 0
    weights = image_context.token_weights(mask)
    compare(file, "mask_token_weights_257", weights, 1e-6)
    compare(file, "image_context_masked", image_context.states(pixels, weights), ATOL)
    assert image_context.token_weights(torch.ones(1, 1, 64, 64)) is None


@torch.no_grad()
def test_what_a_mask_takes_away_is_not_seen(image_context):
    mask = torch.ones(1, 1, 224, 224)
    mask[..., 112:] = 0
    picture = torch.rand(1, 3, 224, 224) * 2 - 1
    other = torch.where(mask == 1, picture, -picture)
    made, again = (image_context.encode(x, mask) for x in (picture, other))
    torch.testing.assert_close(made, again, rtol=0, atol=1e-6)
    assert not torch.allclose(image_context.encode(picture), image_context.encode(other))
    assert (made[0, 1:].unflatten(0, (16, 16))[:, 8:] == 0).all()


@torch.no_grad()
def test_projections_at_their_real_width():
    file, key = arrays("g_clip_context"), "clip.vision_model.post_layernorm."
    small = {"num_hidden_layers": 1, "intermediate_size": 8, "projection_dim": 768}
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "image_size": 28, "patch_size": 14}
    image = ImageContext({**small, **sizes})
    norm = image.model.vision_model.post_layernorm
    norm.load_state_dict({n: filled(key + n, (1024,)) for n in ("weight", "bias")})
    image.model.visual_projection.weight.copy_(filled("clip.visual_projection.weight", (768, 1024)))
    hidden = normal("input:clip_vision_last_hidden", (1, 257, 1024))
    compare(file, "arith_image_context", image.projected(hidden), ATOL)
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "vocab_size": 99}
    text = TextContext(
        own_tokens(99, ("<|startoftext|>", "<|endoftext|>")), {**small, **sizes, "eos_token_id": 2}
    )
    text.model.text_projection.weight.copy_(filled("clip.text_projection.weight", (768, 768)))
    hidden = normal("input:clip_text_last_hidden", (2, 77, 768))
    made = text.projected(hidden, torch.from_numpy(file["arith_pool_idx"]))
    compare(file, "arith_text_context", made, ATOL)


# -- the autoencoder --------------------------------------------------------------------------


@torch.no_grad()
def test_the_autoencoder_is_the_authors():
    widths = [32, 64, 128, 128]
    codec = ImageVAE(
        {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": widths,
            "layers_per_block": 2,
            "latent_channels": 4,
            "norm_num_groups": 32,
            "sample_size": 64,
        },
        fold=1,
        scale=0.18215,
    )
    from everyway.layouts.autoencoder import to_authors
    from everyway.layouts.keymap import without

    own = without(
        "autoencoder.", {k: v for k, v in codec.state_dict().items() if "whiten" not in k}
    )
    made = {k: filled(k, tuple(v.shape)) for k, v in to_authors(own).items()}
    codec.load_state_dict(within("autoencoder.", from_authors(made)), strict=False)
    codec.eval()
    file = arrays("e_autokl_tiny")
    image = 2 * normal("input:ae_image", (2, 3, 64, 64)).sigmoid() - 1
    posterior = codec.posterior(image)
    compare(file, "mean", posterior.mean, ATOL)
    compare(file, "logvar_clamped", posterior.logvar, ATOL)
    drawn = codec.encode(image, torch.Generator().manual_seed(5))
    compare(file, "vd_latent_sample_seed5_x0.18215", drawn, ATOL)
    compare(file, "sample_seed5", codec.whiten.inverse(drawn), 1e-4)
    z = normal("input:ae_z", (2, 4, 8, 8))
    compare(file, "decode_raw", codec.reconstruct(z), 2 * ATOL)
    shown = codec.reconstruct(z).clamp(-1, 1) / 2 + 0.5
    compare(file, "decode_clamped01", shown, ATOL)
    compare(file, "vd_decode_1_over_0.18215", codec.decode(z) / 2 + 0.5, 4 * ATOL)
