"""Every network goes through torch.compile, PEFT and FSDP2, and is trained in each."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn

from everyway.nets.token_transformer import TokenTransformer, TokenTransformerConfig
from everyway.nets.tokens import Patches, TimeToken
from everyway.nets.uvit import UViT, UViTConfig
from everyway.train.ema import EMA
from everyway.train.learner import Learner
from everyway.train.muon import Muon
from everyway.train.sealed import gathered
from everyway.train.state import TrainState

PICTURE = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(8).view(2, 4) % 5
HALF = torch.full((2,), 0.5, dtype=torch.float64)


def uvit() -> UViT:
    layout = (TimeToken(clock="image"), Patches(name="image", channels=1, size=4, patch=2))
    return UViT(UViTConfig(layout=layout, dim=16, depth=2, heads=2))


def transformer() -> TokenTransformer:
    return TokenTransformer(
        TokenTransformerConfig(side=2, codes=5, dim=16, depth=2, heads=2, condition="none")
    )


NETWORKS = {
    "uvit": (uvit, {"image": PICTURE}),
    "token_transformer": (transformer, {"image": IDS}),
}


class Small(Learner):
    """Any network, taught to answer ones."""

    def __init__(self, network: nn.Module, states: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.network, self.states = network, states

    def forward(self, batch=None):
        loss = (self.network(self.states, {"image": HALF})["image"] - 1).square().mean()
        return loss, {"loss": loss}


def trained(learner: Small, steps: int = 3) -> TrainState:
    """With Muon for the blocks, as by default."""
    wanted = [p for p in learner.parameters() if p.requires_grad]
    state = TrainState(learner, Muon(wanted, learner.blocks, lr=1e-2), EMA(learner, 0.9))
    for _ in range(steps):
        learner()[0].backward()
        state.optimiser.step()
        state.optimiser.zero_grad()
        state.ema.update(learner, state.step)
        state.step += 1
    return state


@pytest.fixture(params=NETWORKS)
def made(request):
    """(network, states, name of a layer of its attention)."""
    build, states = NETWORKS[request.param]
    torch.manual_seed(0)
    network = build()
    names = [n for n, m in network.blocks[0].named_modules() if isinstance(m, nn.Linear)]
    return network, states, names[0].rpartition(".")[2]


def test_checkpointed_and_compiled_it_learns_the_same(made):
    network, states, _ = made
    plain = Small(network, states)
    first, start = plain()[0].item(), {k: v.clone() for k, v in network.state_dict().items()}
    own = trained(plain).learner.state_dict()
    assert plain()[0].item() < first
    network.load_state_dict(start)
    network.gradient_checkpointing = True
    for block in network.blocks:
        block.compile(backend="eager")
    again = trained(Small(network, states)).learner.state_dict()
    assert own.keys() == again.keys()  # a compiled block keeps its names
    for name, value in own.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-5)
    whole = torch.compile(network, backend="eager")
    assert len(Small(whole, states).blocks) == len(network.blocks)


def test_a_few_weights_of_it_are_trained_by_peft(made):
    from peft import LoraConfig, get_peft_model

    network, states, layer = made
    wrapped = get_peft_model(network, LoraConfig(r=2, target_modules=[layer]))
    learner = Small(wrapped, states)
    first, frozen = learner()[0].item(), network.norm.weight.clone()
    trained(learner)
    assert learner()[0].item() < first and torch.equal(network.norm.weight, frozen)


@pytest.fixture
def group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_in_shards_it_learns_and_is_saved_as_the_same(made, group, tmp_path):
    from torch.distributed.fsdp import fully_shard

    network, states, _ = made
    start = {k: v.clone() for k, v in network.state_dict().items()}
    own = trained(Small(network, states))
    own.save(tmp_path / "whole", {})
    learned = {k: v.clone() for k, v in own.learner.state_dict().items()}
    network.load_state_dict(start)
    learner = Small(network, states)
    assert learner._no_split_modules == ["Block"]
    for block in learner.blocks:
        fully_shard(block, mesh=group)
    fully_shard(learner, mesh=group)
    sharded = trained(learner)
    sharded.save(tmp_path / "shards", {})
    for name, value in own.ema.weights.items():
        torch.testing.assert_close(gathered(sharded.ema.weights[name]), value, rtol=0, atol=1e-6)
    assert sharded.finite()
    sharded.restore(tmp_path / "whole")
    found = learner.state_dict()
    assert all(torch.equal(gathered(found[name]), value) for name, value in learned.items())
