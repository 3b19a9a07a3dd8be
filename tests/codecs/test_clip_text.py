"""CLIP's states of a text: the authors' numbers, their tokens, and OpenAI's names both ways."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from everyway import job
from everyway.checkpoints.tensor_files import LayoutError, held
from everyway.codecs.clip_text import CLIP_B32_TEXT, ClipText
from everyway.codecs.published_tokens import ClipTokens
from everyway.layouts import clip as layouts
from formula import filled
from published import CLIP_TOKENS, TEXT_VOCABULARY, tokenizer
from published_vq import clip_shapes

GOLDEN = Path(__file__).parents[1] / "golden" / "vq" / "j_clip_text.npz"
ATOL = 1e-5
TINY = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "projection_dim": 64,
    "hidden_act": "quick_gelu",
    "pad_token_id": 199,
    "bos_token_id": 198,
    "eos_token_id": 199,
}
MARKS = ("<|startoftext|>", "<|endoftext|>")


def words(count: int) -> str:
    """A tokenizer of so many words, its marks last."""
    return tokenizer((*(f"w{i}" for i in range(count - 10)), *MARKS))


def theirs(text: dict, projection: int) -> dict:
    shapes = clip_shapes(text, projection)
    return {k: held(filled(f"clip.{k}", shape)) for k, shape in shapes.items()}


@pytest.fixture(scope="module")
def codec() -> ClipText:
    """The authors' tower of the golden."""
    made = ClipText(words(200), TINY, projection=64).eval()
    ours = layouts.from_openai(theirs(TINY, 64))
    made.load_state_dict({k: v.read() for k, v in ours.items()})
    return made.requires_grad_(False)


def test_states_as_the_authors(codec):
    """Measured: 1.1e-6 before and 1.2e-7 after they are made of length 1."""
    with np.load(GOLDEN) as file:
        ids = torch.from_numpy(file["tokens"]).long()
        states, latent = codec.states(ids), codec.latent(ids)
        np.testing.assert_allclose(states.numpy(), file["ln_final"], rtol=0, atol=ATOL)
        np.testing.assert_allclose(latent.numpy(), file["features_normalised"], rtol=0, atol=ATOL)
    torch.testing.assert_close(latent.norm(dim=-1), torch.ones(2, 77))


def test_names_of_openai_both_ways(codec):
    found = theirs(TINY, 64)
    ours = layouts.from_openai(found)
    assert {k: tuple(v.shape) for k, v in ours.items()} == {
        k: tuple(v.shape) for k, v in codec.state_dict().items()
    }
    back = layouts.to_openai(ours)
    assert back.keys() == found.keys()
    assert all(torch.equal(back[k].read(), found[k].read()) for k in found)
    named = layouts.to_transformers(found)
    assert "text_model.encoder.layers.1.self_attn.q_proj.bias" in named
    fused = found["transformer.resblocks.1.attn.in_proj_weight"].read()
    key = named["text_model.encoder.layers.1.self_attn.k_proj.weight"].read()
    assert torch.equal(key, fused[64:128])
    again = layouts.from_transformers(named)
    assert all(torch.equal(again[k].read(), found[k].read()) for k in found)
    broken = {k: v for k, v in ours.items() if "layers.0.self_attn.v_proj.bias" not in k}
    with pytest.raises(LayoutError, match="lacks q, k or v of .*layers.0.self_attn.in_proj_bias"):
        layouts.to_openai(broken)
    with pytest.raises(LayoutError, match="unknown to this layout: visual.proj"):
        layouts.from_openai(found | {"visual.proj": held(torch.ones(1))})


def test_the_released_size():
    shapes = clip_shapes(CLIP_B32_TEXT, 512)
    assert sum(torch.Size(s).numel() for s in shapes.values()) == 63_428_096
    with torch.device("meta"):
        made = ClipText(words(49408), projection=512)
    found = layouts.to_openai({k: held(v) for k, v in made.state_dict().items()})
    assert {k: v.shape for k, v in found.items()} == shapes


def test_tokens_are_padded_with_zero_and_cut_before_the_end_mark():
    tokens = ClipTokens(CLIP_TOKENS, 6, pad=0)
    start, end = TEXT_VOCABULARY - 2, TEXT_VOCABULARY - 1
    made = tokens.encode(["fox on", "", "a fox on blue red green left"])
    assert made.tolist() == [
        [start, 1, 2, end, 0, 0],
        [start, end, 0, 0, 0, 0],
        [start, 0, 1, 2, 3, end],
    ]
    assert torch.equal(tokens.nothing(2), made[[1, 1]])
    assert tokens.mask(made).sum(1).tolist() == [4, 2, 6]
    ended = ClipTokens(CLIP_TOKENS, 6).encode(["fox on"])
    assert ended.tolist() == [[start, 1, 2, end, end, end]]  # as UniDiffuser has it


def test_a_prompt_that_is_cut_is_told():
    """A codec, or the tokens that it reads with, says so; a job asks both."""
    codec = SimpleNamespace(tokens=ClipTokens(CLIP_TOKENS, 6))
    reader = SimpleNamespace(source="text", codec=codec)
    system = SimpleNamespace(modalities={}, conditions={"text": reader})
    (given,) = job.remarks("a fox on blue red green left", system)
    assert given.startswith("the text has 7 tokens and 4 are read, up to 'a fox on blue'")
    assert not [*job.remarks("a fox on blue", system)]


def test_sentences_are_in_lower_case_and_padding_is_told():
    torch.manual_seed(0)
    text = {**TINY, "vocab_size": TEXT_VOCABULARY, "bos_token_id": 8, "eos_token_id": 9}
    codec = ClipText(CLIP_TOKENS, text, length=7).eval()
    with torch.no_grad():
        one, other = codec.encode(["A Fox on BLUE"]), codec.encode(["a fox on blue"])
        assert one.shape == (1, 7, 64) and torch.equal(one, other)
        short = codec.encode(["fox"])
        assert (short.norm(dim=-1) - 1).abs().max() < 1e-6  # the padding's states as well
        assert not torch.equal(short[:, 4], short[:, 5])
        batch = codec.encode(["a fox on blue", "fox"])
        torch.testing.assert_close(batch, torch.cat([one, short]), rtol=0, atol=1e-6)


def test_a_tokenizer_of_another_size_is_told():
    with pytest.raises(ValueError, match="has 10 tokens and the text network 200; give the"):
        ClipText(CLIP_TOKENS, TINY)
