"""Sizes of codecs that tests can afford."""

from __future__ import annotations

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
DECODER = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 48,
           "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}  # fmt: skip
