"""Mask-and-replace: limits, Bayes by brute force, the authors' tables and posteriors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from everyway.objective import losses
from everyway.process.mask_replace import (
    ABSORBING,
    IMPOSSIBLE,
    PAPER,
    RELEASED,
    UNIFORM,
    MaskReplace,
    TokenRates,
    sample,
)
from everyway.sampling.noise import PerSampleNoise
from everyway.system import Modality, System
from formula import normal

GOLDEN = Path(__file__).parents[1] / "golden" / "vq"
CHAINS = {"released": RELEASED, "paper": PAPER, "absorbing": ABSORBING, "uniform": UNIFORM}


def at(index: int, steps: int, batch: int = 1) -> torch.Tensor:
    """The time of the papers' index -1..T-1."""
    return torch.full((batch,), (index + 1) / steps, dtype=torch.float64)


def matrix(process: MaskReplace, rates) -> torch.Tensor:
    """(K + 1, K + 1) float64: column j is the distribution of what class j turns into."""
    stay, replaced, mask = (float(rate[0]) for rate in rates)
    k = process.classes
    out = torch.full((k + 1, k + 1), replaced, dtype=torch.float64)
    out[:k, :k] += stay * torch.eye(k, dtype=torch.float64)
    out[k, :k], out[:k, k], out[k, k] = mask, 0.0, 1.0
    return out


@pytest.mark.parametrize("rates", CHAINS.values(), ids=CHAINS)
def test_one_step_matrices_multiply_to_the_closed_form(rates):
    process = MaskReplace(classes=5, steps=20, rates=rates)
    product = torch.eye(6, dtype=torch.float64)
    for i in range(20):
        product = matrix(process, process.stride(at(i, 20), at(i - 1, 20))) @ product
        closed = matrix(process, process.cumulative(at(i, 20)))
        torch.testing.assert_close(product[:, :5], closed[:, :5], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(closed.sum(0), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("rates", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("ends", [(0.05, 0.0), (0.6, 0.55), (1.0, 0.35), (0.5, 0.0), (0.73, 0.211)])
def test_posterior_is_bayes_by_brute_force(rates, ends):
    process = MaskReplace(classes=4, steps=20, rates=rates)
    t, s = (torch.tensor([e], dtype=torch.float64) for e in ends)
    q_t, q_s = (matrix(process, process.cumulative(u)) for u in (t, s))
    q_ts = matrix(process, process.stride(t, s))
    p_x0 = torch.randn(4, generator=torch.Generator().manual_seed(0)).double().softmax(0)
    for x_t in range(5):
        if q_t[x_t, :4].sum() == 0:
            continue  # this chain never masks
        joint = (
            q_ts[x_t][:, None] * q_s[:, :4]
        )  # (x_s, x_0), what is proportional to the distribution
        possible = q_t[x_t, :4] > 1e-12  # the estimate counts where x_t can have come from
        distribution = p_x0 * possible / (p_x0 * possible).sum()
        exact = (joint[:, possible] / q_t[x_t, :4][possible] * distribution[possible]).sum(1)
        log_x0 = torch.cat([p_x0.log(), torch.tensor([-70.0])]).float()[None, None]
        made = process.posterior(log_x0, torch.tensor([[x_t]]), t, s)[0, 0].double().exp()
        torch.testing.assert_close(made, exact, rtol=2e-5, atol=1e-7)
        assert float(made.sum()) == pytest.approx(1.0, abs=2e-5)


def test_limits():
    process = MaskReplace(classes=7, steps=10)
    noise = PerSampleNoise([1, 2, 3])
    x0 = torch.randint(0, 7, (3, 40), generator=torch.Generator().manual_seed(0))
    draw = process.draw(noise, "image", (3, 40))
    assert torch.equal(process.corrupt(x0, draw, torch.zeros(3)), x0)
    assert (process.corrupt(x0, draw, torch.ones(3)) == process.mask).all()
    assert (process.prior(draw) == process.mask).all()
    uniform = MaskReplace(classes=7, steps=10, rates=UNIFORM)
    assert set(uniform.prior(draw).flatten().tolist()) == set(range(7))


def test_corrupted_shares_follow_the_rates():
    process = MaskReplace(classes=3, steps=10, rates=PAPER)
    x0 = torch.zeros(50, 400, dtype=torch.long)
    t = torch.full((50,), 0.63, dtype=torch.float64)
    x_t = process.corrupt(x0, process.draw(PerSampleNoise(list(range(50))), "x", x0.shape), t)
    stay, replaced, mask = (float(r[0]) for r in process.cumulative(t))
    found = torch.bincount(x_t.flatten(), minlength=4) / x0.numel()
    expected = torch.tensor([stay + replaced, replaced, replaced, mask])
    assert (found - expected).abs().max() < 4 * (0.25 / x0.numel()) ** 0.5


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="2 or more"):
        MaskReplace(classes=1)
    with pytest.raises(ValueError, match="at most 1"):
        TokenRates(stay=(0.9, 0.5), mask=(0.2, 0.2))


# -- the authors' numbers -----------------------------------------------------------------------


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(
        values.numpy().astype(values.numpy().dtype.newbyteorder("<")).tobytes()
    ).hexdigest()


def schedule(key: str) -> tuple[dict[str, torch.Tensor], str]:
    """The rates a, b, c of one step and att, btt, ctt of all before, of T<steps>.K<classes>.<name>.

    The authors keep the identity of "before the first" at the end.
    """
    steps, classes, name = (part.lstrip("TK") for part in key.split("."))
    process = MaskReplace(classes=int(classes), steps=int(steps))
    t = torch.arange(1, int(steps) + 1, dtype=torch.float64) / int(steps)
    first = torch.zeros(1, dtype=torch.float64)
    one = process.stride(t, torch.cat([first, t[:-1]]))
    all_before = process.cumulative(torch.cat([t, first]))
    return dict(zip(("at", "bt", "ct", "att", "btt", "ctt"), one + all_before)), name


def test_schedules_by_sha256():
    """Sums and quotients of float64 are the same everywhere; their logarithms are not."""
    expected = json.loads((GOLDEN / "a_schedule_sha256.json").read_text())
    exact = [key for key in expected if "log_" not in key]
    assert len(exact) == 120
    for key in exact:
        rates, name = schedule(key)
        assert digest(rates[name]) == expected[key], key


def test_schedules_by_number():
    with np.load(GOLDEN / "a_schedule.npz") as file:
        keys = [key for key in file.files if not key.startswith("f32.")]
        assert len(keys) == 18
        for key in keys:
            rates, name = schedule(key)
            np.testing.assert_array_equal(rates[name], file[key], err_msg=key)


def authors(file, key):
    """(B, C, L) of the authors as (B, L, C)."""
    return torch.from_numpy(file[key]).transpose(1, 2)


@pytest.mark.parametrize("case", ["t0", "t1", "t2", "t37", "t50", "t98", "t99", "tmix"])
def test_posteriors_are_the_authors(case):
    with np.load(GOLDEN / "b_posterior.npz") as file:
        process = MaskReplace(classes=20, steps=100)
        x0, x_t = (torch.from_numpy(file[k]) for k in ("x0", "xt"))
        log_x0, one_hot = authors(file, "log_x0"), process.log_one_hot(x0)
        index = torch.tensor([5, 63, 99] if case == "tmix" else [int(case[1:])] * 3)
        t, s = (index + 1) / 100, index / 100
        made = {
            "q_pred_from_onehot_x0": process.forward_log(one_hot, process.cumulative(t)),
            "q_pred_from_log_x0": process.forward_log(log_x0, process.cumulative(t)),
            "q_pred_one_timestep": process.forward_log(
                process.log_one_hot(x_t), process.stride(t, s)
            ),
            "q_posterior_model": process.posterior(log_x0, x_t, t, s),
            "q_posterior_true": process.posterior(one_hot, x_t, t, s),
        }
        np.testing.assert_array_equal(one_hot, authors(file, "log_onehot_x0"))
        certain = process.forward_from(x0, process.cumulative(t))
        assert torch.equal(certain, made["q_pred_from_onehot_x0"])  # written, not computed
        found = 0
        for name, value in made.items():
            if f"{case}.{name}" in file:
                expected = authors(file, f"{case}.{name}")
                torch.testing.assert_close(value, expected, rtol=0, atol=2e-5)
                found += 1
        assert found == (1 if case == "tmix" else 5)


def test_start_and_before_the_first_step():
    with np.load(GOLDEN / "b_posterior.npz") as file:
        process = MaskReplace(classes=20, steps=100)
        log_x0, masked = authors(file, "log_x0"), torch.full((3, 16), 20)
        one = torch.ones(3, dtype=torch.float64)
        made = process.posterior(log_x0, masked, one, one - 0.01)
        expected = authors(file, "start_allmask.t99.q_posterior_model")
        torch.testing.assert_close(made, expected, rtol=0, atol=2e-5)
        assert float(process.log_one_hot(masked).min()) == pytest.approx(IMPOSSIBLE)
        made = process.forward_log(log_x0, process.cumulative(0 * one))
        expected = authors(file, "tm1.q_pred_from_log_x0")
        torch.testing.assert_close(made, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("index", [0, 1, 50, 99])
def test_posteriors_of_many_classes(index):
    with np.load(GOLDEN / "b_posterior.npz") as file:
        process = MaskReplace(classes=2887, steps=100)
        x_t, t = torch.from_numpy(file["big.xt"]), at(index, 100)
        raw = 2 * normal("input:b.big.logits", (1, 2887, 4)).transpose(1, 2)
        made = process.posterior(process.to_clean(raw, x_t, t), x_t, t, at(index - 1, 100))
        key = f"big.t{index}.q_posterior_model"
        found = made.transpose(1, 2).flatten()[:: int(file[f"{key}.stride"])]
        np.testing.assert_allclose(found, file[f"{key}.sub"], rtol=0, atol=2e-5)


def test_a_perfect_and_a_blind_network():
    process = MaskReplace(classes=6, steps=50, auxiliary=0.1)
    x0 = torch.randint(0, 6, (8, 12), generator=torch.Generator().manual_seed(3))
    draw = process.draw(PerSampleNoise(list(range(8))), "x", (8, 12))
    t = torch.arange(1, 9, dtype=torch.float64) / 50
    perfect = 200.0 * torch.nn.functional.one_hot(x0, 6).float()
    assert process.loss(perfect, x0, draw, t).abs().max() < 1e-3
    blind = torch.zeros(8, 12, 6)
    parts = process.loss_parts(blind, x0, draw, t)
    torch.testing.assert_close(parts["auxiliary"], torch.full((8,), 12 * np.log(6)).float())
    assert (process.loss(blind, x0, draw, t) > 0).all()


def test_sample_follows_the_law():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draw = torch.rand(1, 40_000, 4, generator=torch.Generator().manual_seed(0))
    found = torch.bincount(sample(p.log().expand(1, 40_000, 4), draw).flatten()) / 40_000
    assert (found - p).abs().max() < 4 * (0.25 / 40_000) ** 0.5


def test_a_uniform_time_draws_every_step_of_the_chain_alike():
    process = MaskReplace(classes=5, steps=8)
    t = (torch.arange(800, dtype=torch.float64) + 0.5) / 800
    steps = (process.existing(t) * 8).round().long()
    assert torch.bincount(steps).tolist() == [0] + [100] * 8
    on_chain = torch.arange(9, dtype=torch.float64) / 8
    assert torch.equal(process.existing(on_chain), on_chain)


def test_the_loss_is_of_what_the_network_was_shown():
    """A training asks the network and the loss at one time, one of the chain."""
    process, seen = MaskReplace(classes=5, steps=4), []

    class Spy:
        def __getattr__(self, name):
            return getattr(process, name)

        def corrupt(self, x0, draw, t):
            seen.append((t, process.corrupt(x0, draw, t)))
            return seen[-1][1]

        def loss(self, raw, x0, draw, t):
            own = process.corrupt(x0, draw, t)
            assert torch.equal(own, seen[-1][1]) and torch.equal(t, seen[-1][0])
            return process.loss(raw, x0, draw, t)

    modality = Modality(name="x", clock="x", shape=(64,), process=Spy(), codec=None)
    asked = []

    def network(states, times, contexts):
        asked.append((states["x"], times["x"]))
        return {"x": torch.zeros(16, 64, 5)}

    system = System(name="spy", network=network, modalities={"x": modality}, tasks={})
    times = {"x": (torch.arange(16, dtype=torch.float64) + 0.3) / 16}
    noise = PerSampleNoise(list(range(16)))
    made = losses(system, {"x": torch.randint(0, 5, (16, 64))}, times, noise)["x"]
    assert torch.equal(asked[0][0], seen[0][1]) and torch.equal(asked[0][1], seen[0][0])
    assert set((asked[0][1] * 4).tolist()) == {1.0, 2.0, 3.0, 4.0} and made.isfinite().all()


def test_a_time_off_the_chain_has_the_loss_of_its_own_state():
    """Called by itself too, the loss draws the x_t that the time given says."""
    process, drawn = MaskReplace(classes=5, steps=4), []
    corrupt = MaskReplace.corrupt

    class Kept(MaskReplace):
        def corrupt(self, x0, draw, t):
            drawn.append(t)
            return corrupt(self, x0, draw, t)

    t = torch.tensor([0.1, 0.3, 0.62, 1.0], dtype=torch.float64)
    x0 = torch.randint(0, 5, (4, 9))
    draw = process.draw(PerSampleNoise([0, 1, 2, 3]), "x", (4, 9))
    Kept(classes=5, steps=4).loss(torch.zeros(4, 9, 5), x0, draw, t)
    assert torch.equal(drawn[0], t)


def test_what_loop_masks_and_previews_ask_of_it():
    process = MaskReplace(classes=3)
    assert (process.kernel, process.steps) == ("tokens", 100)
    state = torch.tensor([[3, 1, 3]])
    clean = torch.tensor([[[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]]).log()
    shown, sure = process.preview(torch.nn.functional.pad(clean, (0, 1), value=-70.0), state)
    assert shown.tolist() == [[1, 1, 2]]
    torch.testing.assert_close(sure, torch.tensor([[0.0, 0.5, 0.0]]))
    with pytest.raises(ValueError, match="no deterministic path"):
        process.flow(state, clean, 0.5, 0.6)
