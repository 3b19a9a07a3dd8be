"""Any Gaussian system with experts in place of its network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import toy_system
from everyway import library
from everyway.checkpoints import store
from everyway.generate import Model, load
from everyway.placement import Placement
from everyway.process.intervals import named
from everyway.process.training_times import Uniform
from everyway.request import GenerateRequest
from everyway.systems import ediffi, ensemble, versatile
from everyway.systems.uvit import NANO, full
from everyway.systems.uvit import build as uvit
from everyway.train.config import remembered

PROMPTS = ["a red circle left on white", "a blue cross top on yellow"]


@pytest.fixture(scope="module")
def nano():
    """The shipped model, and it as an ensemble of experts that are all alike."""
    model = load("nano")
    times = remembered(model.metadata["training"]).model.times
    system = ensemble.ensemble(model.system, named("edges-2"), times)
    return model, replace(model, system=system)


@pytest.fixture(scope="module")
def apart(nano):
    """Experts that are not alike."""
    torch.manual_seed(0)
    system = ensemble.ensemble(nano[0].system, named("edges-2"), Uniform())
    for module in system.networks.values():
        for weights in module.parameters():
            weights.data += 0.02 * weights.std().nan_to_num() * torch.randn_like(weights)
    return replace(nano[0], system=system)


@pytest.mark.parametrize("kind", ["text-to-image", "image-to-text", "joint", "image"])
def test_equal_experts_draw_what_the_single_network_draws(nano, kind):
    given = {"text": PROMPTS} if kind == "text-to-image" else {}
    if kind == "image-to-text":
        given = {"image": [r.image for r in nano[0].generate(kind="image", n=2, steps=4)]}
    made = [m.generate(kind=kind, steps=6, seed=3, **given) for m in nano]
    for one, other in zip(*made):
        assert one.text == other.text
        if one.image is not None:
            assert one.image.tobytes() == other.image.tobytes()
        assert one.metadata["forwards"] == other.metadata["forwards"]


@pytest.mark.parametrize("preset", ["nano", "nano-text"])
def test_u_vit_becomes_an_ensemble(preset):
    config = full(
        NANO[preset], {"text": {"vocabulary": ["red", "ring"]}} if "text" in preset else {}
    )
    system = uvit(config)
    own = ensemble.ensemble(system, named("level-2"), Uniform())
    assert own.network.bounds == (0.25, 0.5, 0.75) and own.network.clocks == ("image",)
    assert set(own.networks) == {f"network.E2_{k}" for k in range(4)}
    assert ensemble.image_size(own.config) == 16 and ensemble.missing_parts(own.config) == []
    again = ensemble.build(own.config)
    assert [*again.components] == [*own.components] and again.sampler == system.sampler


WORDS = ("a", "red", "blue", "circle")


@pytest.mark.parametrize(
    "system, kinds",
    [
        (lambda: versatile.build(versatile.nano(WORDS)), ("text-to-image", "text-variation")),
        (lambda: ediffi.build(ediffi.nano(WORDS)), ("text-to-image",)),
    ],
    ids=["versatile", "ediffi"],
)
def test_systems_of_several_contexts_become_ensembles(system, kinds, tmp_path):
    """Each flow by the clock that it has; from its folder, where networks of networks are whole."""
    single = system()
    single.network.eval()
    own = ensemble.ensemble(single, named("edges-2"), Uniform())
    library.save(tmp_path / "model", own, {"image_size": 16})
    models = Model(name="one", hash="", system=single), load(tmp_path / "model", device="cpu")
    for kind in kinds:
        made = [m.generate(kind=kind, text="a red circle", steps=4, seed=2)[0] for m in models]
        assert made[0].text == made[1].text
        if made[0].image is not None:
            assert made[0].image.tobytes() == made[1].image.tobytes()
    clocks = own.network.clocks
    assert ensemble.restricted(single) == "" and clocks[0] == "image"


def test_bounds_are_where_training_draws_its_quantiles(nano):
    own = nano[1].system.network
    times = remembered(nano[0].metadata["training"]).model.times
    u = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert own.bounds == tuple((times.shift * u / (1 + (times.shift - 1) * u)).tolist())
    assert own.clocks == ("image", "text") and own.names == ("E2_0", "rest", "E2_3")


def test_a_caption_decides_where_it_is_asked_to(nano):
    system = nano[0].system
    experts = ensemble.experts_of(system, named("edges-1"), Uniform(), clock="text")
    assert experts.clocks == ["text", "image"] and ensemble.restricted(system, "text") == "text"
    assert ensemble.restricted(system) == "image"
    assert ensemble.restricted(uvit(full(NANO["nano"]))) == ""
    with pytest.raises(ValueError, match="clock 'sound' is unknown; choose one of image, text"):
        ensemble.experts_of(system, named("edges-1"), Uniform(), clock="sound")


def test_an_ensemble_is_a_model_folder_like_any_other(apart, tmp_path):
    """Loaded, it draws the same; saved again, it has the same bytes; experts are small files."""
    experts, _ = ensemble.read(apart.system.config)
    networks = {n.removeprefix("network."): m for n, m in apart.system.networks.items()}
    base = ensemble.build(apart.system.config)
    small = ensemble.assembled(base, replace(experts, base="rest"), networks)
    library.save(tmp_path / "a", small, apart.metadata)
    back = load(tmp_path / "a", device="cpu")
    back.save_pretrained(tmp_path / "b")
    one, two = (store.document(tmp_path / k) for k in "ab")
    assert one == two and back.system.deltas == small.deltas
    files = {p.name.rpartition("-")[0]: p.stat().st_size for p in (tmp_path / "a").glob("*.s*")}
    assert files["network.E2_0"] < 0.3 * files["network.rest"]
    again = load(tmp_path / "b", device="cpu")
    made = [m.generate(kind="joint", steps=4, seed=1)[0] for m in (back, again)]
    assert made[0].image.tobytes() == made[1].image.tobytes() and made[0].text == made[1].text


def test_one_expert_lies_on_the_device_at_a_time(apart, monkeypatch):
    """A batch of several intervals is asked expert by expert, and its answer is the same."""
    there: set[str] = set()
    most = []

    def move(module, device):
        (there.add if str(device) == "cuda" else there.discard)(names[id(module)])
        most.append(len(there))

    whole = replace(apart.system, placement=Placement())
    little = whole.placed(Placement(device=torch.device("cuda"), memory="low"))
    names = {id(m): name for name, m in little.networks.items()}
    monkeypatch.setattr("everyway.placement._move", move)
    monkeypatch.setattr("everyway.system.placed", lambda tree, device: tree)
    query = _query(whole, [0.9, 0.1, 0.5, 0.2, 0.95])
    expected = whole.denoiser(rows_a_call=0)([query])[0]
    made = little.denoiser(rows_a_call=0)([query])[0]
    assert most and max(most) == 1
    assert all(torch.equal(made[k], expected[k]) for k in expected)


def test_experts_in_their_files_are_read_when_they_are_asked(apart, tmp_path):
    """One of them is in memory at a time, and what is drawn is the same."""
    library.save(tmp_path / "model", apart.system, apart.metadata)
    whole, little = (load(tmp_path / "model", "cpu", memory=m) for m in ("full", "disk"))
    prompt = {"kind": "text-to-image", "text": PROMPTS[0], "steps": 6, "seed": 1}
    seen = []
    for _ in little.run(GenerateRequest(**prompt)):
        modules = little.system.networks.items()
        seen.append([n for n, m in modules if not next(m.parameters()).is_meta])
    (made,), (expected,) = (m.generate(**prompt) for m in (little, whole))
    assert made.image.tobytes() == expected.image.tobytes()
    assert max(map(len, seen)) == 1 and {n for names in seen for n in names} == {
        *whole.system.networks
    }
    with pytest.raises(ValueError, match="load it without memory='disk' to save it"):
        little.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="memory='disk' is for a network of several"):
        load("nano", "cpu", memory="disk")


def _query(system, times):
    from everyway.contracts import Query

    draw = torch.Generator().manual_seed(0)
    states = {k: torch.randn(s, generator=draw) for k, s in system.shapes(len(times)).items()}
    t = torch.tensor(times, dtype=torch.float64)
    return Query(states=states, times={"image": t, "text": t})


def test_a_system_of_tokens_is_refused():
    """Beside Gaussian states tokens do no harm: those decide."""
    mixed = toy_system.build({"dim": 8})
    assert ensemble.deciding(mixed) == ["image", "text"]
    tokens = replace(mixed, modalities={"sound": mixed.modalities["sound"]}, tasks={})
    with pytest.raises(ValueError, match="a toy cannot be split; give a system of Gaussian states"):
        ensemble.experts_of(tokens, named("edges-1"), Uniform())
    with pytest.raises(ValueError, match="no ensembles; split the model"):
        ensemble.ExpertsConfig(of="ensemble", clocks=[], bounds=[], names=[])
    with pytest.raises(ValueError, match="base is 'E5'; choose one of E1_0"):
        ensemble.ExpertsConfig(of="uvit", clocks=[], bounds=[], names=["E1_0"], base="E5")


def test_a_swapped_expert_is_another_one(apart):
    other = apart.system.networks["network.rest"]
    own = ensemble.swapped(apart.system, "E2_3", other)
    assert own.networks["network.E2_3"] is other
    assert own.networks["network.E2_0"] is apart.system.networks["network.E2_0"]
