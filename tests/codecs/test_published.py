"""The codecs built at the published sizes give the authors' numbers on formula-filled weights."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from everyway.codecs.image_vae import STABLE_DIFFUSION, ImageVAE
from everyway.codecs.text_latent import GPT2_SMALL, TextLatent
from everyway.codecs.text_tokens import SPECIAL
from formula import FOLDER, compare, filled, golden, normal

REAL = FOLDER.with_name("uvit_real")
ATOL = 1e-5


def given(entry: dict) -> Tensor:
    return normal(entry["key"], tuple(entry["shape"]))


def compare_whole(meta: dict, arrays: dict, key: str, value: Tensor) -> None:
    """Every stored element, and mean, standard deviation and absolute maximum of all of them."""
    assert list(value.shape) == meta["outputs"][key]["shape"]
    compare(arrays, key, value, meta["outputs"][key]["stride"], ATOL)
    whole = value.detach().double()
    stats = [float(v) for v in (whole.mean(), whole.std(correction=0), whole.abs().max())]
    difference = np.abs(np.array(stats) - arrays[f"stats.{key}"])
    assert (difference <= (1e-6, 1e-6, ATOL)).all(), difference


# -- caption decoder --------------------------------------------------------------------------

MARKS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
PREFIXES = {"narrow.": "encode_prefix.", "widen.": "decode_prefix.", "decoder.": "gpt."}


def a_tokenizer(size: int) -> str:
    """The JSON of a tokenizer of `size` whole words."""
    words = [*SPECIAL, *(f"word{i}" for i in range(size - len(SPECIAL)))]
    model = {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}}
    return json.dumps({"version": "1.0", "model": model | {"unk_token": SPECIAL[2]}})


def caption_codec(meta: dict) -> TextLatent:
    """The text latent with the authors' GPT-2, and text states of one layer that are not used."""
    size, width = meta["gpt2"]["vocab_size"], meta["gpt2"]["n_embd"]
    codec = TextLatent(
        tokenizer=a_tokenizer(size),
        length=meta["prefix_length"],
        dim=meta["hidden_dim"],
        text=MARKS | {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 12},
        decoder=MARKS | GPT2_SMALL | {"n_layer": meta["gpt2"]["n_layer"]},
    )
    with torch.no_grad():
        for ours, parameter in codec.named_parameters():  # tied weights once, as the embedding
            for start, theirs in PREFIXES.items():
                if ours.startswith(start):
                    key = theirs + ours.removeprefix(start)
                    parameter.copy_(filled(key, tuple(parameter.shape)))
    return codec.eval()


@pytest.mark.parametrize(
    "case", ["caption_small", pytest.param("caption_real_gpt2_small", marks=pytest.mark.slow)]
)
def test_caption_decoder(case):
    meta, arrays = golden(case, REAL)
    codec, tokens = caption_codec(meta), torch.from_numpy(arrays["tokens"])
    parts = (codec.narrow, codec.widen, codec.decoder)
    assert sum(p.numel() for part in parts for p in part.parameters()) == meta["params"]
    prefix, z64 = (given(meta["inputs"][k]) for k in ("prefix768", "z64"))
    with torch.inference_mode():
        hidden = codec.whiten(codec.narrow(prefix))
        former = codec.decoder.transformer.wte(tokens)
        embedded = torch.cat([codec.widen(hidden), former], 1)
        logits = codec.decoder(inputs_embeds=embedded).logits
        start = codec.decoder(inputs_embeds=codec.widen(z64)).logits[:, -1]
        loss = codec.loss(hidden, tokens)
    for key, value in {
        "hidden": hidden,
        "logits": logits,
        "logits_last": logits[:, -1],
        "logits_next_from_z64": start,
    }.items():
        compare_whole(meta, arrays, key, value)
    assert (tokens != codec.tokens.pad).all()
    read = logits[:, meta["prefix_length"] - 1 : -1].flatten(0, 1)
    assert float(loss) == pytest.approx(float(F.cross_entropy(read, tokens.flatten())), abs=1e-5)


def test_caption_training_loss():
    """The authors count label 0 on the whole prefix; a mask hides the last two columns."""
    meta, arrays = golden("caption_small", REAL)
    codec, tokens = caption_codec(meta), torch.from_numpy(arrays["tokens"])
    labels = F.pad(tokens, (meta["prefix_length"], 0))
    mask = torch.ones_like(labels)
    mask[:, -2:] = 0
    with torch.inference_mode():
        hidden = codec.narrow(given(meta["inputs"]["prefix768"]))
        embedded = torch.cat([codec.widen(hidden), codec.decoder.transformer.wte(tokens)], 1)
        logits = codec.decoder(inputs_embeds=embedded, attention_mask=mask).logits
    found = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert float(found) == pytest.approx(float(arrays["loss_with_labels_and_mask"]), abs=1e-5)


# -- autoencoder ------------------------------------------------------------------------------

RENAMES = (
    (r"_blocks\.(\d)\.resnets\.(\d)\.", r".\1.block.\2."),
    (r"_blocks\.(\d)\.downsamplers\.0\.", r".\1.downsample."),
    (r"_blocks\.(\d)\.upsamplers\.0\.", r".\1.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm\.", "attn_1.norm."),
    (r"attn_1\.to_(q|k|v)\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"conv_norm_out\.", "norm_out."),
    (r"(?<=decoder\.up\.)(\d)", lambda match: str(3 - int(match[1]))),  # they count from the end
)


def authors_name(name: str) -> str:
    """diffusers' name of an autoencoder tensor -> the authors'."""
    for pattern, target in RENAMES:
        name = re.sub(pattern, target, name)
    return name


@pytest.fixture(scope="module")
def autoencoder() -> ImageVAE:
    """KL-f8; the attention's 1x1 convolutions are linear layers here, with the same numbers."""
    codec = ImageVAE(autoencoder=STABLE_DIFFUSION, fold=1, scale=0.18215)
    with torch.no_grad():
        for name, parameter in codec.autoencoder.named_parameters():
            parameter.copy_(filled(authors_name(name), tuple(parameter.shape)))
    return codec.eval()


def test_autoencoder(autoencoder):
    meta, arrays = golden("real_autoencoder_kl", REAL)
    assert sum(p.numel() for p in autoencoder.parameters()) == meta["params"]
    image = given(meta["inputs"]["image"]).clamp(-1, 1)
    noise, z = (given(meta["inputs"][k]) for k in ("posterior_noise", "z"))
    with torch.inference_mode():
        posterior = autoencoder.posterior(image)
        latent = autoencoder.whiten(posterior.mean + posterior.std * noise)
        decoded = autoencoder.reconstruct(autoencoder.whiten.inverse(z))
        torch.testing.assert_close(autoencoder.decode(z), decoded.clamp(-1, 1), rtol=0, atol=0)
        own = autoencoder.whiten(posterior.mean)
        torch.testing.assert_close(autoencoder.encode(image), own, rtol=0, atol=0)
    compare_whole(meta, arrays, "moments", posterior.parameters)
    compare_whole(meta, arrays, "z_sample", latent)
    compare_whole(meta, arrays, "decoded", decoded)
