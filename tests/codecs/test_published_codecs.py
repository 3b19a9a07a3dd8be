"""What the published codecs do that ours do not: two vocabularies, beams, padding, posteriors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from everyway.codecs.beams import beam_search
from everyway.codecs.image_vae import SMALL, ImageVAE
from everyway.codecs.published_tokens import CaptionTokens, ClipTokens, tokenizer_json
from everyway.codecs.text_latent import TextLatent
from formula import filled
from published import CLIP_TOKENS, GPT2_TOKENS, READER_VOCABULARY, TEXT_VOCABULARY, WORDS

# -- beams ------------------------------------------------------------------------------------


def decoder(vocabulary: int, seed: str) -> nn.Module:
    """Two layers of GPT-2 filled by the formula, with sharper and less even odds than its own."""
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=160, vocab_size=vocabulary)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(filled(f"{seed}.{name}", tuple(parameter.shape)))
        model.transformer.wte.weight.mul_(6.0)
    return model


def by_hand(model: nn.Module, prefix: Tensor, beams: int, longest: int, end: int):
    """The search in plain words: every beam read anew from its beginning, all continuations sorted.

    A beam is (its tokens, the sum of their log-probabilities, its length, whether it is finished);
    a finished one goes on with token 0 only, at no cost and no longer.
    """

    def odds(tokens: list[int]) -> list[float]:
        embedded = [prefix]
        if tokens:
            embedded.append(model.transformer.wte(torch.tensor([tokens])))
        logits = model(inputs_embeds=torch.cat(embedded, 1)).logits[0, -1]
        return logits.log_softmax(-1).tolist()

    first = odds([])
    order = sorted(range(len(first)), key=lambda token: -first[token])[:beams]
    found = [([token], first[token], 1, token == end) for token in order]
    for _ in range(longest - 1):
        if all(done for *_, done in found):
            break
        longer = []
        for tokens, total, length, done in found:
            if done:
                longer.append((total / length, [*tokens, 0], length, True))
                continue
            for token, log_p in enumerate(odds(tokens)):
                mean = (total + log_p) / (length + 1)
                longer.append((mean, [*tokens, token], length + 1, token == end))
        longer.sort(key=lambda row: -row[0])
        found = [(tokens, mean * n, n, done) for mean, tokens, n, done in longer[:beams]]
    found.sort(key=lambda row: -row[1] / row[2])
    return [(tokens[:length], total / length) for tokens, total, length, _ in found]


@pytest.mark.parametrize(
    ("vocabulary", "beams", "longest", "ends_at"),
    [(301, 5, 8, 3), (41, 5, 12, 0), (41, 5, 12, 5), (13, 5, 30, 4), (13, 3, 67, 7), (41, 1, 9, 2)],
)
def test_beams_are_those_of_the_plain_search(vocabulary, beams, longest, ends_at):
    """ends_at: the place whose token in the best beam is made the end mark, so that beams end."""
    for case in range(3):
        model = decoder(vocabulary, f"beam{case}")
        prefix = 2 * torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(case))
        end = beam_search(model, prefix, beams, ends_at + 1, -1)[0].tokens[ends_at]
        with torch.inference_mode():
            expected = by_hand(model, prefix, beams, longest, end)
        found = beam_search(model, prefix, beams, longest, end)
        assert [h.tokens for h in found] == [tokens for tokens, _ in expected]
        for hypothesis, (_, score) in zip(found, expected):
            assert hypothesis.score == pytest.approx(score, abs=1e-4)
        assert all(end not in h.tokens[:-1] and len(h.tokens) <= longest for h in found)
        assert any(h.tokens[-1] == end for h in found)


class Told(nn.Module):
    """A decoder that answers from a table: what was read -> odds of the next token."""

    def __init__(self, table: dict[tuple[int, ...], list[float]]) -> None:
        super().__init__()
        self.table, self.read = table, {}

    def forward(self, past_key_values, use_cache, inputs_embeds=None, input_ids=None):
        cache = past_key_values
        if inputs_embeds is not None:
            width = inputs_embeds.shape[1]
            cache.update(torch.zeros(1, 1, width, 1), torch.zeros(1, 1, width, 1), 0)
            read = [()]
        else:
            tokens = input_ids.reshape(-1, 1, 1, 1).float()
            keys, _ = cache.update(tokens, tokens, 0)
            read = [tuple(int(t) for t in row[0, 1:, 0]) for row in keys]
        odds = torch.tensor([self.table.get(r, self.table[None]) for r in read])
        return type("Out", (), {"logits": odds.log()[:, None]})()


def test_a_longer_text_of_a_better_mean_comes_first():
    """Token 1 is the end: "2 end" has the mean log(.5 .4) / 2, "3 3 end" log(.4 .9 .9) / 3."""
    table = {
        None: [0.25, 0.25, 0.25, 0.25],
        (): [0.05, 0.05, 0.5, 0.4],
        (2,): [0.2, 0.4, 0.2, 0.2],
        (3,): [0.02, 0.03, 0.05, 0.9],
        (3, 3): [0.03, 0.9, 0.03, 0.04],
    }
    found = beam_search(Told(table), torch.zeros(1, 1, 1), 3, 5, 1)
    assert found[0].tokens == [3, 3, 1]
    assert found[0].score == pytest.approx(math.log(0.4 * 0.9 * 0.9) / 3, abs=1e-5)
    second = next(h for h in found if h.tokens == [2, 1])
    assert second.score == pytest.approx(math.log(0.5 * 0.4) / 2, abs=1e-5)
    (one,) = beam_search(Told(table), torch.zeros(1, 1, 1), 1, 2, 1)
    assert one.tokens == [2, 1]


# -- tokens -----------------------------------------------------------------------------------


def test_clip_ids_are_marked_padded_and_cut():
    tokens = ClipTokens(CLIP_TOKENS, 6)
    start, end = len(WORDS), len(WORDS) + 1
    assert len(tokens) == TEXT_VOCABULARY and (tokens.start, tokens.end, tokens.pad) == (
        start,
        end,
        end,
    )
    ids = tokens.encode(["a fox", "", "a red fox on blue left"])
    assert ids.tolist() == [
        [start, 0, 1, end, end, end],
        [start, end, end, end, end, end],
        [start, 0, 4, 1, 2, end],
    ]
    assert tokens.mask(ids).sum(1).tolist() == [4, 2, 6]
    assert tokens.decode(ids) == ["a fox", "", "a red fox on"]


def test_caption_ids_end_with_an_added_mark():
    tokens = CaptionTokens(GPT2_TOKENS, 5)
    end = READER_VOCABULARY - 1
    assert len(tokens) == READER_VOCABULARY and tokens.end == end
    ids = tokens.encode(["a fox", "a red fox on blue"])
    assert ids.tolist() == [[0, 1, end, end, end], [0, 4, 1, 2, end]]
    assert tokens.mask(ids).sum(1).tolist() == [3, 5]
    assert tokens.decode(torch.tensor([[0, 1, end, 4, 4], [4, 4, 4, 4, 4]])) == [
        "a fox",
        "red red red red red",
    ]
    assert len(CaptionTokens(tokens.tokenizer.to_str(), 5)) == READER_VOCABULARY  # added once


def test_tokenizers_come_as_one_file_or_as_vocabulary_and_merges(tmp_path):
    import json

    assert json.loads(tokenizer_json_of(tmp_path, CLIP_TOKENS)) == json.loads(CLIP_TOKENS_AGAIN)
    letters = [*"abcdefghij", *(f"{c}</w>" for c in "abcdefghij")]
    for name, vocabulary in (
        ("gpt2", ["a", "b", "Ġ", "ab", "Ġab", "<|endoftext|>"]),
        ("clip", [*letters, "ab</w>", "<|startoftext|>", "<|endoftext|>"]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
        merges = "a b\nĠ ab" if name == "gpt2" else "a b</w>"
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    caption = CaptionTokens(tokenizer_json(str(tmp_path / "gpt2")), 4)
    assert caption.encode(["ab ab"]).tolist() == [[3, 4, 6, 6]]
    assert caption.decode(caption.encode(["ab ab"])) == ["ab ab"]
    clip = ClipTokens(tokenizer_json(str(tmp_path / "clip")), 6)
    assert clip.encode(["AB  ab c"]).tolist() == [[21, 20, 20, 12, 22, 22]]
    with pytest.raises(ValueError, match="holds no tokenizer") as caught:
        tokenizer_json(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def tokenizer_json_of(folder, spec: str) -> str:
    (folder / "tokenizer.json").write_text(spec, encoding="utf-8")
    assert tokenizer_json(str(folder)) == tokenizer_json(str(folder / "tokenizer.json"))
    return tokenizer_json(str(folder))


CLIP_TOKENS_AGAIN = ClipTokens(CLIP_TOKENS, 3).tokenizer.to_str()

# -- the text latent --------------------------------------------------------------------------

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
TEXT = dict(vocab_size=TEXT_VOCABULARY, max_position_embeddings=12, pad_token_id=9, **SIZES)
READER = dict(n_embd=32, n_layer=1, n_head=2, n_positions=40, vocab_size=READER_VOCABULARY)


def latent(**options) -> TextLatent:
    torch.manual_seed(0)
    settings = dict(tokenizer=CLIP_TOKENS, reader=GPT2_TOKENS, length=12, dim=8)
    marks = dict(bos_token_id=9, eos_token_id=9, pad_token_id=9)
    return TextLatent(**settings, text=TEXT | marks, decoder=READER | marks, **options).eval()


@torch.no_grad()
def test_padding_stays_in_the_published_latent():
    kept, cut = latent(keep_padding=True), latent()
    a, b = (codec.encode(["a fox on blue"]) for codec in (kept, cut))
    assert torch.equal(a[:, :6], b[:, :6]) and b[:, 6:].abs().max() == 0
    assert a[:, 6:].abs().min() > 0
    states = kept.states(kept.tokens.encode(["a fox on blue"]))
    assert torch.equal(a, kept.narrow(states))


@torch.no_grad()
def test_beams_read_the_likeliest_text_of_each_latent():
    codec = latent(beams=4, longest=7)
    states = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1))
    read = codec.decode(states)
    for state, text in zip(states, read):
        prefix = codec.widen(state[None])
        tokens, _ = by_hand(codec.decoder, prefix, 4, 7, codec.reader.end)[0]
        assert codec.hypotheses(state)[0].tokens == tokens
        assert text == codec.reader.decode(torch.tensor([tokens + [codec.reader.end]]))[0]
    greedy = latent(beams=1, longest=7)
    greedy.load_state_dict(codec.state_dict())
    tokens, _ = by_hand(greedy.decoder, greedy.widen(states[:1]), 1, 7, greedy.reader.end)[0]
    assert greedy.decode(states[:1]) == greedy.reader.decode(torch.tensor([tokens + [9]]))


def test_captions_are_learned_in_the_readers_vocabulary():
    codec = latent(keep_padding=True)
    optimiser = torch.optim.AdamW(codec.parameters(), 1e-2)
    texts, losses = ["a red fox on blue", "green left of red"], []
    for _ in range(40):
        loss = codec.loss(codec.encode(texts), codec.reader.encode(texts))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 1.5 and losses[-1] < 0.3
    assert codec.decode(codec.encode(texts)) == texts
    codec.beams = 5
    assert codec.decode(codec.encode(texts)) == texts


def test_vocabularies_must_be_those_of_the_networks():
    with pytest.raises(ValueError, match="the tokenizer has 10 tokens and the text network 12"):
        TextLatent(CLIP_TOKENS, 12, 8, TEXT | {"vocab_size": 12}, READER, reader=GPT2_TOKENS)
    with pytest.raises(ValueError, match=r"no <\|startoftext\|>"):
        TextLatent(GPT2_TOKENS, 12, 8, TEXT, READER, reader=GPT2_TOKENS)


# -- the image latent -------------------------------------------------------------------------


@torch.no_grad()
def test_a_draw_of_the_posterior_is_encoded_on_request():
    torch.manual_seed(0)
    codec = ImageVAE(autoencoder=SMALL, fold=4, scale=0.18215).eval()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    posterior = codec.posterior(x)
    torch.testing.assert_close(codec.encode(x), 0.18215 * posterior.mean)
    drawn = [codec.encode(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn[0], 0.18215 * (posterior.mean + posterior.std * noise))
    torch.testing.assert_close(codec.whiten.inverse(drawn[0]) * 0.18215, drawn[0])
