"""The benchmark's peer is the same function: names, bytes, outputs and gradients agree."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from everyway.checkpoints.tensor_files import LayoutError
from everyway.contracts import Context
from everyway.layouts.unidiffuser import (
    DIFFUSERS_UNUSED,
    from_diffusers,
    published,
    to_diffusers,
)
from everyway.nets.uvit import UViT

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
peers = importlib.import_module("peers")
speed = importlib.import_module("speed")
full_size = importlib.import_module("full_size")

# v1 of diffusers as published: sha256 of its sorted "name shape" lines, and its parameters
LAYOUT = "3361da20e5275e6f6ec2656ed623eab1ba6f9c8511539ad77a035b35cb024eb9"
PARAMETERS = 952_535_632
FLAT = "attn1.to_k.bias"  # adds the same to all scores of a query, which softmax cancels
CASES = [
    pytest.param(dict(version=version, **options), id=f"v{version}{'-'.join(['', *options])}")
    for version in (0, 1)
    for options in ({}, {"time_mlp": True, "qkv_bias": True})
]


@pytest.fixture(params=CASES)
def pair(request):
    """(our tiny network, diffusers' with its weights)."""
    torch.manual_seed(0)
    network = peers.filled(published(**request.param, **speed.TINY))
    return network, peers.unidiffuser(network)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_published_layout_of_diffusers():
    with torch.device("meta"):
        network = UViT(published(version=1))
    shapes = {k: tuple(v.shape) for k, v in to_diffusers(network.state_dict()).items()}
    lines = "\n".join(f"{k} {list(shapes[k])}" for k in sorted(shapes))
    assert hashlib.sha256(lines.encode()).hexdigest() == LAYOUT
    peer = peers.unidiffuser(network)  # on the meta device too
    assert {k: tuple(v.shape) for k, v in peer.state_dict().items()} == shapes
    assert sum(p.numel() for p in peer.parameters()) == PARAMETERS
    back = from_diffusers(peer.state_dict())
    ours = {k: v.shape for k, v in network.state_dict().items()}
    assert {k: v.shape for k, v in back.items()} == ours


def test_keymap_keeps_every_byte_both_ways(pair):
    network, peer = pair
    assert same(to_diffusers(network.state_dict()), peer.state_dict())
    assert same(from_diffusers(peer.state_dict()), network.state_dict())
    assert same(to_diffusers(from_diffusers(peer.state_dict())), peer.state_dict())


def test_a_converted_state_shares_no_memory_with_itself(pair):
    made = to_diffusers(pair[0].state_dict())
    assert len({v.untyped_storage().data_ptr() for v in made.values()}) == len(made)


@pytest.mark.parametrize("data_type", [0, 1])
def test_outputs_are_those_of_diffusers(pair, data_type):
    network, peer = pair
    states, times = peers.inputs(network.config, 3)
    contexts = {"data_type": Context(tokens=torch.full((3,), data_type))}
    with torch.no_grad():
        found = network(states, times, contexts)
        expected = peers.ask(peer, states, times, data_type)
    assert found.keys() == expected.keys()
    assert peers.disparity(found, expected) < 1e-5


def test_gradients_are_those_of_diffusers(pair):
    network, peer = pair
    states, times = peers.inputs(network.config, 2)
    for answer in (partial(network, states, times), partial(peers.ask, peer, states, times)):
        sum(x.square().mean() for x in answer().values()).backward()
    found = to_diffusers({k: p.grad for k, p in network.named_parameters()})
    expected = {k: p.grad for k, p in peer.named_parameters() if k not in DIFFUSERS_UNUSED}
    assert found.keys() - set(DIFFUSERS_UNUSED) == expected.keys()
    flat = {k: v for k, v in expected.items() if k.endswith(FLAT)}
    assert all(max(found[k].abs().max(), v.abs().max()) < 1e-6 for k, v in flat.items())
    assert peers.disparity(found, {k: v for k, v in expected.items() if k not in flat}) < 1e-5


def test_the_comparison_sees_every_tensor(pair):
    """But those that diffusers never reads and those that softmax cancels."""
    network, peer = pair
    states, times = peers.inputs(network.config, 2)
    with torch.no_grad():
        right = network(states, times)
        for name, weight in peer.named_parameters():
            kept = weight.clone()
            weight += 0.1 * torch.randn_like(weight)
            apart = peers.disparity(right, peers.ask(peer, states, times))
            weight.copy_(kept)
            unseen = name in DIFFUSERS_UNUSED or name.endswith(FLAT)
            assert (apart < speed.CLOSE) == unseen, (name, apart)


def test_a_foreign_file_that_does_not_fit_is_one_clear_line(pair):
    state = pair[1].state_dict()
    lost = "transformer.transformer_in_blocks.1.attn1.to_k.weight"
    with pytest.raises(LayoutError, match=r"lacks q, k or v of ins\.1\.attn\.qkv\.weight$"):
        from_diffusers({k: v for k, v in state.items() if k != lost})
    with pytest.raises(LayoutError, match="unknown to this layout: nonsense"):
        from_diffusers({**state, "nonsense": torch.zeros(1)})
    with pytest.raises(LayoutError, match="unknown to this layout: conv.image.weight"):
        to_diffusers({"conv.image.weight": torch.zeros(1)})


def test_the_benchmark_runs(tmp_path, capsys):
    path = tmp_path / "deep" / "speed.json"
    speed.main(["--size", "tiny", "--rounds", "2", "--device", "cpu", "--json", str(path)])
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["parity"] < 1e-5 and found["parameters"] > 0
    for what in ("forward, float32, ms", "forward + backward, float32, ms"):
        row = found["rows"][what]
        assert row.keys() == {"everyway", "diffusers", "ratio"}
        assert all(0 < low <= middle <= high for low, middle, high in row.values())
    assert found["rows"]["loop of a step, guidance 3, ms"]["everyway"][1] > 0
    assert "forward" in capsys.readouterr().out


def test_networks_that_differ_are_not_timed(tmp_path, monkeypatch):
    def wrong(network):
        peer = peers.unidiffuser(network)
        peer.vae_img_out.bias.data += 1
        return peer

    monkeypatch.setattr(speed, "unidiffuser", wrong)
    path = tmp_path / "speed.json"
    with pytest.raises(SystemExit, match="nothing timed"):
        speed.main(["--size", "tiny", "--device", "cpu", "--json", str(path)])
    assert not path.exists()


@pytest.mark.parametrize("arguments", [["--rounds", "1"], ["--clock", "cpu", "--device", "cuda"]])
def test_arguments_that_cannot_be_measured(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        speed.main(["--size", "tiny", *arguments])
    assert caught.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_full_size_makes_the_files_that_it_reads(tmp_path, monkeypatch):
    """The authors' files and those of the hub, tiny, as `measured` gives them to the command."""
    sizes = dict(dim=32, depth=2, heads=2, image_size=4, text_length=3, text_dim=4, embed_dim=8)
    tiny = dict(n_embd=16, n_layer=1, n_head=2, n_inner=32, vocab_size=50258)
    whole = full_size.settings()
    decoder = whole["caption-decoder"]
    small = {
        "unidiffuser": {**whole["unidiffuser"], **sizes},
        "caption-decoder": {**decoder, "decoder": {**decoder["decoder"], **tiny}},
    }
    monkeypatch.setattr(full_size, "settings", lambda: small)
    monkeypatch.setattr(full_size, "tokenizer", lambda size, marks: json.dumps([size, *marks]))
    clip = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    monkeypatch.setattr("everyway.codecs.encoders.CLIP_B32_VISION", clip)
    monkeypatch.setattr("everyway.codecs.encoders.CLIP_L14_TEXT", clip)
    full_size.write_files(tmp_path)
    named = {*full_size.PARTS.values(), "uvit.pth"} - {"autoencoder_kl.pth"}
    assert named <= {path.name for path in tmp_path.iterdir()}
    held = torch.load(tmp_path / "uvit.pth", weights_only=True)
    assert held["token_embedding.weight"].shape == (2, 32)
    held = torch.load(tmp_path / "caption_decoder.pth", weights_only=True)
    assert {"encode_prefix.weight", "gpt.lm_head.weight"} <= held.keys()
