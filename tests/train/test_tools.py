"""What a training can be told reaches its step: fused updates, min-SNR weights, a power function of
the weights, and gradient checkpointing, which changes no number."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from everyway.train import devices, sources, train
from everyway.train.config import ConfigError, resolve
from everyway.train.ema import EMA
from everyway.train.latents import Latents
from everyway.train.learner import Share
from everyway.train.loop import _placed
from everyway.train.systems import SystemLearner, prepared

SMALL = {"cache": 32, "batch": 8, "precision": "fp32", "warmup": 1}


@pytest.fixture(scope="module", autouse=True)
def few_words():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "WORDS_OF", 200)
        yield


@pytest.fixture(scope="module")
def begun():
    devices.joined("cpu")
    system, data = prepared(resolve("nano", SMALL)), sources.open_data("shapes", 0)
    return system, Latents(shards=[sources.encode(system, [data.sample(k) for k in range(32)])])


SHARE = Share(seed=0, step=0, size=8, rows=slice(0, 8), device=torch.device("cpu"))


def test_min_snr_weighs_each_sample_by_its_time(begun):
    system, latents = begun
    plain, weighed = (
        SystemLearner(system, latents, resolve("nano", {**SMALL, "min_snr": gamma}))
        for gamma in (0.0, 5.0)
    )
    with torch.no_grad():
        (_, one), (_, other) = (learner(learner.batch(SHARE)) for learner in (plain, weighed))
    times = plain.batch(SHARE)[2]
    for name, loss in one.items():
        modality = system.modalities[name]
        weight = modality.process.min_snr(times[modality.clock], 5.0)
        wanted = torch.where(times[modality.clock] > 0, loss * weight.float(), loss)
        torch.testing.assert_close(other[name], wanted, rtol=1e-5, atol=1e-7)
        assert not torch.equal(loss, other[name])


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_updates_are_fused(begun, optimiser):
    config = resolve("nano", {**SMALL, "optimiser": optimiser})
    engine = devices.accelerator(config, False, False)
    _, made = _placed(SystemLearner(*begun, config), engine, config, False)
    groups = [group["fused"] for group in made.param_groups]
    assert groups and all(groups)


def test_an_average_of_some_length_is_exported_and_checkpointing_changes_nothing(tmp_path):
    states = []
    for number, more in enumerate(({}, {"gradient_checkpointing": True})):
        given = {**SMALL, "steps": 3, "ema_length": 0.1, **more}
        train(resolve("nano", given, out=str(tmp_path / str(number))))
        states.append(load_file(tmp_path / str(number) / "state.safetensors"))
    for name in states[0].keys() - {"sha256"}:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=1e-6)
    live, ema = (
        {k.removeprefix(part): v for k, v in states[0].items() if k.startswith(part)}
        for part in ("learner.", "ema.")
    )
    assert live.keys() == ema.keys() and any(not torch.equal(live[k], ema[k]) for k in live)


def test_a_length_that_no_average_has_is_refused():
    with pytest.raises(ConfigError, match="ema_length is 0.3"):
        resolve("nano", {"ema_length": 0.3})
    assert EMA(torch.nn.Linear(1, 1), 0.9, 0.28).exponent > 0
