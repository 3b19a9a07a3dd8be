"""Versatile Diffusion as a system: the released schedule and sampler, flows, nulls, requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from everyway import library
from everyway.contracts import Context
from everyway.errors import UsageError
from everyway.generate import load
from everyway.guidance import guided
from everyway.nets.multiflow import MultiFlow
from everyway.process.config import gaussian
from everyway.sampling.loop import final, sample
from everyway.sampling.noise import StreamNoise
from everyway.sampling.solvers import ddim, stride_steps
from everyway.systems import MissingParts, builder, versatile
from everyway.tasks import GENERATE, Task
from formula import normal
from published_versatile import SMALL, arrays, context, fill, time, write_tiny_files

PROCESS = gaussian("discrete")
WORDS = ("a", "red", "blue", "circle")


# -- the schedule and the sampler -------------------------------------------------------------


def test_the_schedule_is_the_released_one():
    file, schedule = arrays("f_schedule_ddim_toy"), PROCESS.schedule
    np.testing.assert_allclose(schedule.betas(), file["betas_float64"], rtol=1e-12)
    alpha, sigma = schedule.alpha_sigma(time(range(1000)))
    np.testing.assert_allclose(alpha**2, file["alphas_cumprod_float64"], rtol=1e-10)
    np.testing.assert_allclose(sigma, file["buf_sqrt_one_minus_alphas_cumprod"], rtol=1e-5)


@pytest.mark.parametrize("steps", [50, 100, 30, 7])
def test_steps_are_every_kth_of_training(steps):
    laid = stride_steps(steps, "time", (1.0, 0.0), PROCESS.schedule)
    numbers = [round(1000 * s.t) - 1 for s in laid]
    assert numbers[::-1] == arrays("f_schedule_ddim_toy")[f"ddim_timesteps_{steps}"].tolist()
    assert laid[-1].s == 0.001  # the noise of the first step, not none
    assert [s.s for s in laid[:-1]] == [s.t for s in laid[1:]]


def toy(queries):
    """eps = tau tanh(x + m) + (1 - tau) x / 2, m the mean of the context."""
    out = []
    for query in queries:
        x, t = query.states["x"], query.times["x"]
        tau = ((1000 * t - 1) / 1000).float().reshape(-1, *[1] * (x.ndim - 1))
        m = query.contexts["c"].tokens.mean((1, 2)).reshape(tau.shape)
        eps = tau * torch.tanh(x + m) + (1 - tau) * x / 2
        out.append({"x": PROCESS.to_clean(eps, x, t)})
    return out


def toy_run(steps, scale, shape=(2, 4, 8, 8), sampler="ddim-stride", states=None, t_start=1.0):
    """(the last state, the numbers of the steps)."""
    task = Task(name="x", roles={"x": GENERATE}, contexts={"c": 1.0})
    contexts = {c: Context(tokens=normal(f"input:toy_{c}", (2, 5, 16))) for c in "cu"}
    noise = StreamNoise(torch.Generator().manual_seed(120))
    nulls = {"c": contexts["u"]}
    asked = []

    def denoise(queries):
        asked.append(round(1000 * float(queries[0].times["x"][0])) - 1)
        return toy(queries)

    run = sample(
        guided(denoise, task, {"x": "x"}, float(scale), None, null_contexts=nulls),
        processes={"x": PROCESS},
        clocks={"x": "x"},
        task=task,
        states=states or {},
        shapes={"x": shape},
        noise=noise,
        steps=steps,
        sampler=sampler,
        contexts={"c": contexts["c"]},
        t_start=t_start,
    )
    return final(run).states["x"], asked


def near(value, wanted):
    np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize(("steps", "scale"), [(50, "7.5"), (50, "1"), (20, "3"), (7, "7.5")])
def test_runs_of_a_toy_network_are_the_released_ones(steps, scale):
    file = arrays("f_schedule_ddim_toy")
    made, asked = toy_run(steps, scale)
    near(made, file[f"toy_final_{steps}_scale{scale}"])
    assert asked == file[f"toy_visited_t_{steps}"].tolist()


def test_a_run_of_vectors_and_one_with_noise():
    file = arrays("f_schedule_ddim_toy")
    made, _ = toy_run(50, 7.5, shape=(2, 32))
    near(made, file["toy_final_text2x32_50_scale7.5"])
    stochastic = ddim(1.0, lay_steps=stride_steps)
    made, _ = toy_run(50, 2, sampler=stochastic)
    near(made, file["toy_final_50_scale2_eta1_seed120"])


@pytest.mark.parametrize("fidelity", [0.2, 0.5, 0.74])
def test_a_run_that_keeps_a_part_of_a_picture(fidelity):
    file = arrays("f_schedule_ddim_toy")
    begin = versatile.fidelity_start(fidelity)
    assert round(1000 * begin) - 1 == int(file[f"toy_i2i_fid{fidelity}_forward_t"])
    draw = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(120))
    known = normal("input:toy_x0", (2, 4, 8, 8))
    noisy = PROCESS.corrupt(known, draw, torch.full((2,), begin, dtype=torch.float64))
    made, asked = toy_run(round(50 * begin), 7.5, states={"x": noisy}, t_start=begin)
    assert asked == file[f"toy_i2i_fid{fidelity}_visited"].tolist()
    near(made, file[f"toy_i2i_fid{fidelity}_final"])


def test_all_and_nothing_of_a_picture():
    assert versatile.fidelity_start(1.0) == 0.0 and versatile.fidelity_start(0.0) == 1.0
    assert versatile.fidelity_start(0.8) == pytest.approx(0.182)  # a float below 10 steps
    with pytest.raises(UsageError, match="from 0 to 1"):
        versatile.fidelity_start(1.5)
    with pytest.raises(UsageError, match="no step below t = 0.002"):
        stride_steps(10, "time", (0.002, 0.0), PROCESS.schedule)


# -- whole runs on a small network -----------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return fill(MultiFlow(SMALL))


def released_loop(network, x, contexts, nulls, steps=2, scale=7.5):
    """DDIM written out as the released code has it: numbers, not times."""
    kept = PROCESS.schedule.alpha_sigma(time(range(1000)))[0] ** 2
    name = "image" if x.ndim == 4 else "text"
    numbers = [*range(1, 1000, 1000 // steps)]
    for k in reversed(range(len(numbers))):
        a, b = kept[numbers[k]], kept[numbers[k - 1] if k else 0]
        t = {name: time(numbers[k], len(x))}
        with torch.no_grad():
            e, u = (network({name: x}, t, c)[name].double() for c in (contexts, nulls))
        e = u + scale * (e - u)
        clean = (x - (1 - a).sqrt() * e) / a.sqrt()
        x = (b.sqrt() * clean + (1 - b).sqrt() * e).float()
    return x


def system_of(network):
    made = versatile.build(versatile.nano(WORDS))
    shapes = {"image": (4, 16, 16), "text": (40,)}
    modalities = {
        n: replace(m, shape=shapes[n], process=PROCESS) for n, m in made.modalities.items()
    }
    return replace(made, network=network, modalities=modalities)


def run_of(system, task, contexts, nulls, steps=2, denoise=None):
    """The last state of a run, of two samples."""
    name = task.generated[0]
    noise = StreamNoise(torch.Generator().manual_seed(120))
    asked = guided(
        denoise or system.denoiser(), task, system.clocks, 7.5, None, null_contexts=nulls
    )
    run = sample(
        asked,
        processes=system.processes,
        clocks=system.clocks,
        task=task,
        states={},
        shapes=system.shapes(2),
        noise=noise,
        steps=steps,
        sampler="ddim-stride",
        contexts=system.weighed(contexts, nulls, task.contexts),
    )
    return final(run).states[name]


NULLS = {"image": Context(tokens=torch.zeros(2, 17, 48)), "text": context("u_text")}
GIVEN = {"image": context("c_image"), "text": context("c_text")}


@pytest.mark.parametrize("name", ["text-to-image", "image-to-text"])
def test_a_flow_is_sampled_as_the_released_loop_samples_it(network, name):
    system = system_of(network)
    task = system.tasks[name]
    (given,) = task.contexts
    x = torch.randn(*system.shapes(2)[task.generated[0]], generator=seeded(120))
    wanted = released_loop(network, x, {given: GIVEN[given]}, {given: NULLS[given]})
    near(run_of(system, task, GIVEN, NULLS), wanted.numpy())


def test_guidance_keeps_the_shares_of_contexts(network):
    system = system_of(network)
    task = replace(system.tasks["text-to-image"], contexts={"text": 0.7, "image": 0.3})
    mixed = {"text": 0.7, "image": 0.3}
    share = {n: torch.full((2,), w) for n, w in mixed.items()}
    given, nulls = ({n: replace(c[n], weight=share[n]) for n in mixed} for c in (GIVEN, NULLS))
    x = torch.randn(2, 4, 16, 16, generator=seeded(120))
    near(run_of(system, task, GIVEN, NULLS, 1), released_loop(network, x, given, nulls, 1).numpy())


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# -- the system -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(3)
    made = builder("versatile")(versatile.nano(WORDS))
    for p in made.network.parameters():  # heads that start at zero would make every flow alike
        if not p.any():
            p.data = 0.05 * torch.randn(p.shape)
    return made


@pytest.fixture(scope="module")
def model(system, tmp_path_factory):
    folder = tmp_path_factory.mktemp("versatile")
    library.save(folder, system, {"image_size": 16})
    return load(folder)


PICTURE = Image.new("RGB", (16, 16), (200, 30, 30))
REQUESTS = {
    "text-to-image": {"text": "a red circle"},
    "image-variation": {"image": PICTURE},
    "image-to-text": {"image": PICTURE},
    "text-variation": {"text": "a red circle"},
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_every_flow_is_a_request(model, kind):
    (first,) = model.generate(kind=kind, steps=2, **REQUESTS[kind])
    (again,) = model.generate(kind=kind, steps=2, **REQUESTS[kind])
    made = "image" if kind in ("text-to-image", "image-variation") else "text"
    assert first.outputs.keys() == {made} and first.metadata["forwards"] == 4
    show = (lambda r: r.image.tobytes()) if made == "image" else (lambda r: r.text)
    assert show(first) == show(again)


def test_a_model_comes_back_from_its_folder(model, system):
    assert model.system.config == system.config
    assert {n for n in model.system.components} == {
        "network.time", "network.image_data", "network.text_data",
        "network.image_context", "network.text_context",
    }  # fmt: skip
    for name, module in model.system.components.items():
        own = system.components[name].state_dict()
        assert all(torch.equal(v, own[k]) for k, v in module.state_dict().items())


def test_nulls_are_zeros_empty_pictures_and_the_empty_text(system):
    own = system.conditions["image"]
    assert [*own.nulls] == ["zeros", "black", "grey"]
    zeros, black, grey = (own.null(n).context().tokens for n in own.nulls)
    assert not zeros.any() and not grey.any() and (black == -1).all()
    assert system.tasks["image-to-text"].null == "black"
    empty = system.conditions["text"].null().context().tokens
    assert torch.equal(empty, system.conditions["text"].codec.encode([""]))


def test_a_context_that_a_task_does_not_give_is_not_asked_for(system):
    task = system.tasks["text-to-image"]
    nulls = system.null_contexts(2, task.null, task)
    assert nulls.keys() == {"text"}
    text = {"text": Context(tokens=torch.zeros(2, 10, 16))}
    assert system.weighed(text, nulls, task.contexts).keys() == {"text"}


def test_a_published_model_says_what_it_lacks():
    config = {"network": versatile.FOUR_FLOW.to_json()}
    with pytest.raises(MissingParts) as caught:
        versatile.build(config)
    assert "--part text=optimus-vae.pth" in str(caught.value)
    assert versatile.image_size(config) == 512
    assert versatile.missing_parts(versatile.nano(WORDS)) == []


def test_layers_of_other_networks_are_refused():
    small = replace(versatile.FOUR_FLOW, dim=64).to_json()
    with pytest.raises(UsageError, match="different dim"):
        versatile.assembled({"network": small}, {"network": versatile.FOUR_FLOW.to_json()}, {})
    with pytest.raises(UsageError, match="not sound"):
        versatile.VersatileConfig(network={**small, "contexts": {"sound": 8}})


# -- layers in their files --------------------------------------------------------------------


def in_memory(system):
    return {
        name.removeprefix("network.")
        for name, part in system.networks.items()
        if not next(part.parameters()).is_meta
    }


def test_a_flow_reads_the_layers_that_it_uses(model, system, tmp_path):
    library.save(tmp_path, system, {"image_size": 16})
    spare = load(tmp_path, memory="disk")
    assert in_memory(spare.system) == set()
    for kind in REQUESTS:
        (wanted,), (made,) = (
            m.generate(kind=kind, steps=2, **REQUESTS[kind]) for m in (model, spare)
        )
        assert made.outputs == wanted.outputs
        (given,) = spare.system.tasks[kind].contexts
        (data,) = spare.system.tasks[kind].generated
        assert in_memory(spare.system) == {"time", f"{data}_data", f"{given}_context"}


# -- published files --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_tiny_files(tmp_path_factory.mktemp("published"))


TOLD = {"heads": "4", "drawn_size": "8"}
WORDED = {kind: {**given, **({"text": "w1 w2"} if "text" in given else {})}
          for kind, given in REQUESTS.items()}  # fmt: skip


def test_a_published_file_with_its_parts_makes_every_flow(published):
    file, parts = published
    whole = load(file, parts=parts, settings=TOLD)
    assert whole.image_size == 16 and whole.system.sampler == "ddim-stride"
    assert whole.system.codecs.keys() == {"image", "text", "image_condition", "text_condition"}
    spare = load(file, parts=parts, settings=TOLD, memory="disk")
    assert spare.hash == whole.hash
    for kind, given in WORDED.items():
        (one,), (other,) = (m.generate(kind=kind, steps=2, **given) for m in (whole, spare))
        assert one.outputs == other.outputs and one.metadata["forwards"] == 4


def test_the_command_draws_from_a_published_file(published, run):
    file, parts = published
    words = [w for part in parts.items() for w in ("--part", "=".join(part))]
    words += [w for told in TOLD.items() for w in ("--set", "=".join(told))]
    code, _, err = run(
        "generate", "image", "--text", "w3 w4", "--model", file, *words,
        "--steps", 2, "--dtype", "bf16",
    )  # fmt: skip
    assert code == 0, err
    code, _, err = run("generate", "image", "--text", "w3", "--model", file, *words[2:])
    assert code == 2 and len(err.strip().splitlines()) == 1 and "--part" in err


def test_only_states_that_a_task_reads_are_encoded(model, monkeypatch):
    asked = []
    for name, modality in model.system.modalities.items():
        kind = type(modality.codec)
        encode = kind.encode
        monkeypatch.setattr(
            kind, "encode", lambda self, raw, n=name, e=encode: asked.append(n) or e(self, raw)
        )
    model.generate(kind="image-variation", steps=1, image=PICTURE)
    assert asked == []
    model.generate(kind="image-to-image", steps=2, strength=0.5, image=PICTURE, text="a circle")
    assert "image" in asked
