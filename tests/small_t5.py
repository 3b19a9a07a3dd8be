"""A tokenizer in the form of T5's, and a network that tests can afford."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "fox")
T5 = dict(vocab_size=8, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)


def _tokenizer() -> str:
    made = Tokenizer(WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return made.to_str()


T5_TOKENS = _tokenizer()
