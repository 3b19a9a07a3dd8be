"""The encoders that eDiff-I is conditioned on, at small sizes and (counted alone) at published
ones."""

from __future__ import annotations

import pytest
import torch

from everyway.codecs.context_encoders import T5_XXL, ClipSentence, T5States, filled
from everyway.codecs.encoders import CLIP_L14_VISION, ImageEmbedding
from everyway.errors import UsageError
from published import CLIP_TOKENS, TEXT_VOCABULARY
from small_t5 import T5, T5_TOKENS

CLIP = dict(
    vocab_size=TEXT_VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, projection_dim=16, bos_token_id=8, eos_token_id=9, pad_token_id=9,
)  # fmt: skip


@pytest.fixture(scope="module")
def t5():
    torch.manual_seed(0)
    return T5States(T5_TOKENS, T5, length=6).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return ClipSentence(CLIP_TOKENS, CLIP, length=7).eval().requires_grad_(False)


def test_T5_TOKENS(t5):
    """Tokens, an end mark, padding; a long text keeps its end mark."""
    ids = t5.tokens.encode(["a red fox", "a a a a a a a", ""])
    assert ids.tolist() == [[3, 4, 5, 1, 0, 0], [3, 3, 3, 3, 3, 1], [1, 0, 0, 0, 0, 0]]


def test_t5_states(t5):
    """Of a text the same states, however long the padding behind it is."""
    context = t5.encode(["a red fox", "a fox"])
    assert context.tokens.shape == (2, 6, 16)
    assert context.mask.sum(1).tolist() == [4, 3]
    bare = t5.model(input_ids=torch.tensor([[3, 4, 5, 1]])).last_hidden_state
    torch.testing.assert_close(context.tokens[:1, :4], bare)


def test_clip_sentence(clip):
    """The summary is CLIP's own text feature, the rest its states."""
    made = clip.encode(["a", "a red fox"])
    assert made.shape == (2, 8, 16)
    whole = clip.model(input_ids=clip.tokens.encode(["a", "a red fox"]))
    torch.testing.assert_close(made[:, 0], whole.text_embeds)
    torch.testing.assert_close(made[:, 1:], whole.last_hidden_state)


@pytest.mark.parametrize("kind", ["t5", "clip"])
def test_weights_from_a_folder(kind, t5, clip, tmp_path):
    """As transformers saves them; a folder without them is told in one line."""
    own = {"t5": t5, "clip": clip}[kind]
    own.model.save_pretrained(tmp_path)
    fresh = T5States(T5_TOKENS, T5, 6) if kind == "t5" else ClipSentence(CLIP_TOKENS, CLIP, 7)
    filled(fresh, tmp_path)
    for (name, one), other in zip(own.state_dict().items(), fresh.state_dict().values()):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)
    with pytest.raises(UsageError, match=f"{tmp_path / 'none'} holds no"):
        filled(fresh, tmp_path / "none")


def test_incomplete_weights_are_refused(t5, tmp_path):
    t5.model.save_pretrained(tmp_path)
    deeper = T5States(T5_TOKENS, {**T5, "num_layers": 3}, 6)
    with pytest.raises(UsageError, match="holds no whole T5EncoderModel"):
        filled(deeper, tmp_path)


def test_refusals():
    with pytest.raises(UsageError, match="give that of a T5"):
        T5States(CLIP_TOKENS, T5)
    with pytest.raises(UsageError, match="the tokenizer has 6 tokens and the text network 4"):
        T5States(T5_TOKENS, {**T5, "vocab_size": 4})
    with pytest.raises(UsageError, match="the states are 16 wide"):
        ClipSentence(CLIP_TOKENS, {**CLIP, "projection_dim": 8})


def test_published_sizes():
    """T5-XXL, CLIP L/14's text with its projection, and its picture."""
    with torch.device("meta"):
        made = [T5States(T5_TOKENS, T5_XXL), ClipSentence(CLIP_TOKENS)]
        made.append(ImageEmbedding(CLIP_L14_VISION))
    counts = [sum(p.numel() for p in codec.model.parameters()) for codec in made]
    assert counts == [4_762_310_656, 123_650_304, 303_966_208]
