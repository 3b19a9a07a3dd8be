"""Muon: its update is orthogonal, it knows which weights are hidden matrices, it resumes."""

from __future__ import annotations

import torch

from everyway.nets.tokens import Patches, TimeToken
from everyway.nets.uvit import UViT, UViTConfig
from everyway.train.muon import Muon, hidden_matrices, orthogonalised

LAYOUT = (TimeToken(clock="image"), Patches(name="image", channels=1, size=4, patch=2))


def _network() -> UViT:
    torch.manual_seed(0)
    return UViT(UViTConfig(layout=LAYOUT, dim=32, depth=2, heads=2))


def _muon(network: UViT) -> Muon:
    return Muon(network.parameters(), network.blocks, lr=2e-3)


def test_singular_values_are_near_one():
    torch.manual_seed(0)
    for rows, columns in ((64, 32), (32, 64), (32, 32)):
        rank = min(rows, columns)
        u, _ = torch.linalg.qr(torch.randn(rows, rank))
        v, _ = torch.linalg.qr(torch.randn(columns, rank))
        update = orthogonalised(u @ torch.linspace(0.05, 1, rank).diag() @ v.T)
        values = torch.linalg.svdvals(update / (0.2 * max(rows, columns) ** 0.5))
        assert 0.6 < values.min() and values.max() < 1.3


def test_a_fused_matrix_is_orthogonalised_block_by_block():
    q, k, v = (torch.randn(16, 16) * s for s in (1, 10, 100))
    whole = orthogonalised(torch.cat([q, k, v]), stacked=3)
    torch.testing.assert_close(whole, torch.cat([orthogonalised(b) for b in (q, k, v)]))


def test_hidden_matrices_and_nothing_else():
    network = _network()
    named = {id(p): name for name, p in network.named_parameters()}
    picked = {named[id(p)]: n for p, n in hidden_matrices(network.blocks)}
    assert picked["ins.0.attn.qkv.weight"] == 3 and picked["outs.0.skip_linear.weight"] == 1
    assert not [n for n in picked if "embed" in n or "head" in n or "norm" in n]
    assert len(picked) == 3 * 4 + 1


def test_a_convolution_is_a_matrix_from_all_of_its_taps():
    layer = torch.nn.Conv2d(4, 6, 3, bias=False)
    before = layer.weight.detach().clone()
    optimiser = Muon(layer.parameters(), [layer], lr=1.0, weight_decay=0.0)
    layer(torch.randn(2, 4, 5, 5)).square().sum().backward()
    optimiser.step()
    moved = (before - layer.weight.detach()).flatten(1)
    values = torch.linalg.svdvals(moved / (0.2 * 36**0.5))
    assert moved.shape == (6, 36) and 0.6 < values.min() and values.max() < 1.3


def test_it_trains_and_a_state_goes_on_exactly():
    def steps(network, optimiser, count):
        for k in range(count):
            x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(k))
            times = {"image": torch.full((4,), 0.5, dtype=torch.float64)}
            loss = (network({"image": x}, times)["image"] - x).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return loss.item()

    whole, halves = _network(), _network()
    a, b = _muon(whole), _muon(halves)
    first = steps(whole, a, 1)
    steps(halves, b, 1)
    again = _muon(halves)
    again.load_state_dict(b.state_dict())
    assert steps(whole, a, 30) < 0.5 * first
    steps(halves, again, 30)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), halves.parameters()))
