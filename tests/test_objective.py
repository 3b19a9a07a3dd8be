"""What the network is shown, in training and in sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everyway.contracts import Query
from everyway.objective import losses
from everyway.process.gaussian import EDMPrecond, GaussianProcess
from everyway.process.schedules import EDMSigma
from everyway.sampling.noise import StreamNoise


class Spy(torch.nn.Module):
    """Answers zeros and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, states, times, contexts=None, keep=None):
        self.seen.append(states["image"])
        return {name: torch.zeros_like(x) for name, x in states.items()}


@pytest.fixture
def system(nano):
    """Nano's with pictures on a sigma schedule, whose noisy states reach 80."""
    edm = GaussianProcess(schedule=EDMSigma(), parameterisation=EDMPrecond())
    image = replace(nano.system.modalities["image"], process=edm)
    return replace(
        nano.system, network=Spy(), modalities={**nano.system.modalities, "image": image}
    )


def test_the_network_is_shown_states_of_unit_variance(system):
    states = {name: 0.5 * torch.randn(shape) for name, shape in system.shapes(8).items()}
    times = {clock: torch.ones(8, dtype=torch.float64) for clock in ("image", "text")}
    losses(system, states, times, StreamNoise(torch.Generator().manual_seed(0)))
    noisy = {**states, "image": 80 * torch.randn(system.shapes(8)["image"])}
    system.denoiser()([Query(states=noisy, times=times, contexts={}, keep=("image",))])
    trained, *sampled = system.network.seen
    assert float(trained.std()) == pytest.approx(1.0, abs=0.05)
    assert float(torch.cat(sampled).std()) == pytest.approx(1.0, abs=0.05)
