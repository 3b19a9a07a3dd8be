"""Flows of one network are learned together: their gradients add up, and each takes its layers."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from everyway import objective
from everyway.generate import load
from everyway.sampling.noise import StreamNoise
from everyway.systems.versatile import PLAN, RATES
from everyway.train import sources
from everyway.train.config import ConfigError, resolve
from everyway.train.flows import FlowLearner
from everyway.train.latents import Latents
from everyway.train.learner import RowNoise, Share
from everyway.train.loop import _groups, train
from everyway.train.systems import prepared

QUICK = {"cache": 64, "batch": 16, "log_every": 1, "warmup": 1, "cooldown": 0}
SHAPE = {"size": 16, "rows": slice(0, 16), "device": torch.device("cpu")}


def configured(out="unused", **settings):
    return resolve("nano-versatile", {**QUICK, **settings}, out=str(out))


@pytest.fixture(scope="module", autouse=True)
def few_words():
    """Enough to meet every word of the shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "WORDS_OF", 200)
        yield


@pytest.fixture(scope="module")
def begun():
    """(a fresh system, latents of its data)."""
    system, data = prepared(configured()), sources.open_data("shapes", 0)
    return system, Latents(shards=[sources.encode(system, [data.sample(k) for k in range(64)])])


def a_learner(begun, **settings) -> FlowLearner:
    system, latents = begun
    system = replace(system, network=deepcopy(system.network))
    learner = FlowLearner(system, latents, configured(**settings))
    for p in learner.parameters():  # also those that start at zero
        torch.nn.init.normal_(p, std=0.1)
    return learner


def gradients(learner, batch) -> dict[str, torch.Tensor]:
    learner.zero_grad()
    learner(batch)[0].backward()
    return {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}


def test_a_step_sums_the_gradients_of_its_flows(begun):
    torch.manual_seed(0)
    learner = a_learner(begun, drop=0.0)
    share = Share(seed=0, step=3, **SHAPE)
    x0, encoded, times, own, _ = learner.batch(share)
    whole = gradients(learner, (x0, encoded, times, own, share.noise()))
    summed = {}
    for name, chosen in own.items():
        found = gradients(learner, (x0, encoded, times, {name: chosen}, share.noise()))
        for key, value in found.items():
            summed[key] = summed.get(key, 0.0) + value
    assert whole.keys() == summed.keys() == dict(learner.named_parameters()).keys()
    for key, value in whole.items():
        torch.testing.assert_close(value, summed[key], rtol=1e-3, atol=1e-6)


def test_a_flow_is_shown_its_samples_and_its_context_alone(begun):
    """Its losses are those of a system asked for that flow with nothing else there."""
    learner = a_learner(begun, drop=0.0)
    system = learner.system
    x0, encoded, times, own, _ = learner.batch(Share(seed=0, step=1, **SHAPE))
    noise = [StreamNoise(torch.Generator().manual_seed(5)) for _ in range(2)]
    contexts = objective.contexts_of(system, encoded, noise[0], 0.0, 16)
    flows = {name: (rows, contexts) for name, rows in own.items()}
    found = objective.flow_losses(system, x0, times, noise[0], flows)
    x_t, draws = objective.corrupt(system, x0, times, noise[1])
    rows, process = own["text-to-image"], system.modalities["image"].process
    raw = system.network(
        {"image": x_t["image"][rows]},
        {"image": times["image"][rows]},
        {"text": replace(contexts["text"], tokens=contexts["text"].tokens[rows])},
    )["image"]
    expected = process.loss(raw, *(x["image"][rows] for x in (x0, draws, times)))
    torch.testing.assert_close(found["text-to-image"]["image"], expected, rtol=1e-4, atol=1e-5)
    assert {k: [*v] for k, v in found.items()} == {
        "image-variation": ["image"], "text-to-image": ["image"],
        "image-to-text": ["text"], "text-variation": ["text"],
    }  # fmt: skip


def test_samples_are_shared_out_evenly_and_alike_by_any_number_of_processes(begun):
    shares = dict(text_to_image=3.0, image_to_text=1.0, image_variation=1.0, text_variation=1.0)
    learner = a_learner(begun, batch=120, **shares)
    whole = Share(seed=0, step=0, size=120, rows=slice(0, 120), device=torch.device("cpu"))
    own = learner.samples_of(whole)
    assert torch.stack([*own.values()]).sum(0).eq(1).all()
    assert abs(int(own["text-to-image"].sum()) - 60) <= 2
    parts = [learner.samples_of(replace(whole, rows=slice(k, k + 40))) for k in (0, 40, 80)]
    for name, rows in own.items():
        assert torch.equal(rows, torch.cat([part[name] for part in parts]))
        assert all(part[name].sum() >= 5 for part in parts)
    with pytest.raises(ConfigError, match="has no sample for"):
        learner.samples_of(replace(whole, size=2, rows=slice(0, 2)))


def test_parts_of_a_batch_make_the_whole_also_where_a_flow_has_no_sample(begun):
    learner = a_learner(begun, batch=16, text_variation=0.3)
    whole = Share(seed=0, step=2, **SHAPE)
    parts = [replace(whole, rows=slice(k, k + 4)) for k in (0, 4, 8, 12)]
    assert not all(learner.samples_of(part)["text-variation"].any() for part in parts)
    loss, losses = learner(learner.batch(whole))
    found = [learner(learner.batch(part)) for part in parts]
    torch.testing.assert_close(sum(own for own, _ in found) / 4, loss, rtol=1e-4, atol=1e-5)
    for name, values in losses.items():
        seen = torch.cat([own[name] for _, own in found])
        torch.testing.assert_close(seen, values, rtol=1e-3, atol=1e-4)
        mine = learner.samples_of(whole)[name]
        assert not values[~mine].any()
        share = mine.float().mean()
        torch.testing.assert_close(values.mean(), (share * values)[mine].mean())


def test_layers_learn_at_their_part_of_the_rate(begun):
    learner = a_learner(begun, scaled="true")
    groups = {group["part"]: group["params"] for group in _groups(learner)}
    assert groups.keys() == {0.1, 0.2, 1.0}
    parts = learner.network.parts
    for name, part in parts.items():
        expected = {id(p) for p in groups[RATES["all"].get(name, 1.0)]}
        assert {id(p) for p in part.parameters()} <= expected
    assert [*{g["part"]: 0 for g in _groups(a_learner(begun))}] == [1.0]


def test_the_plan_goes_from_stage_to_stage_and_touches_no_other_layer(begun, tmp_path):
    def stage(name, steps, out, **settings):
        config = configured(out, stage=name, steps=steps, optimiser="adamw", **settings)
        train(config)
        return load(str(out / "model"), device="cpu").system.network.state_dict()

    start = begun[0].network.state_dict()
    first = stage("variation", 2, tmp_path / "1")
    moved = {k.split(".")[1] for k, v in first.items() if not torch.equal(v, start[k])}
    assert moved == {"time", "image_data", "image_context"}
    second = stage("pictures", 2, tmp_path / "2", init=str(tmp_path / "1" / "model"), scaled="true")
    moved = {k.split(".")[1] for k, v in second.items() if not torch.equal(v, first[k])}
    assert moved == {"time", "image_data", "image_context", "text_context"}
    again = {**QUICK, "init": str(tmp_path / "2" / "model")}
    whole = stage("all", 4, tmp_path / "whole", init=again["init"])
    stage("all", 2, tmp_path / "half", init=again["init"])
    (tmp_path / "half" / "config.json").unlink()
    halves = stage("all", 4, tmp_path / "half", init=again["init"])
    assert all(torch.equal(v, halves[k]) for k, v in whole.items())
    log = (tmp_path / "whole" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(PLAN["all"]) <= json.loads(log[-1]).keys()


def test_a_share_of_nothing_leaves_a_flow_out(begun):
    learner = a_learner(begun, text_variation=0.0)
    assert "text-variation" not in learner.flows and len(learner.flows) == 3
    nothing = {f"{a}_to_{b}": 0.0 for a, b in (("text", "image"), ("image", "text"))}
    with pytest.raises(ConfigError, match="no flow has a share"):
        a_learner(begun, **nothing, image_variation=0.0, text_variation=0.0)


def test_muon_takes_groups_of_different_rates(begun):
    from everyway.train.muon import Muon

    learners = [a_learner(begun) for _ in range(2)]
    learners[1].load_state_dict(learners[0].state_dict())
    batch = learners[0].batch(Share(seed=0, step=0, **SHAPE))
    moved = []
    for learner, part in zip(learners, (1.0, 0.25)):
        before = {n: p.detach().clone() for n, p in learner.named_parameters()}
        learner.rates = dict.fromkeys(learner.rates, part)
        optimiser = Muon(_groups(learner), learner.blocks, lr=1e-3, weight_decay=0.0, half=False)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * group["part"]
        noise = RowNoise(StreamNoise(torch.Generator().manual_seed(0)), 16, slice(0, 16))
        learner((*batch[:4], noise))[0].backward()
        optimiser.step()
        moved.append({n: p.detach() - before[n] for n, p in learner.named_parameters()})
    for name, whole in moved[0].items():
        torch.testing.assert_close(moved[1][name], 0.25 * whole, rtol=1e-2, atol=2e-7)
